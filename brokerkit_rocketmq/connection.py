"""The connection of the RocketMQ backend: a client for sending and managing, and one for each consumer."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Protocol

from pydantic import SecretStr

from brokerkit.errors import BrokerError, BrokerUnavailable, Closed
from brokerkit.spi import (
    Capability,
    ConnectOptions,
    ConsumerOptions,
    Finding,
    GroupSpec,
    GroupStats,
    Inbound,
    Outbound,
    TopicSpec,
)
from brokerkit_rocketmq.addresses import Address
from brokerkit_rocketmq.admin import RocketMQAdmin
from brokerkit_rocketmq.client import Client, ClientOptions
from brokerkit_rocketmq.consumer import RocketMQConsumer
from brokerkit_rocketmq.dead_letters import DeadLetterReader, DeadLetters
from brokerkit_rocketmq.diagnosis import Diagnosis, unreachable_brokers
from brokerkit_rocketmq.dialing import DialOptions, TlsOptions
from brokerkit_rocketmq.errors import NAME, refused
from brokerkit_rocketmq.group_checks import GroupChecks
from brokerkit_rocketmq.inbox import RocketMQInbox
from brokerkit_rocketmq.links import LinkOptions
from brokerkit_rocketmq.making import Making
from brokerkit_rocketmq.mapping import Codec
from brokerkit_rocketmq.names import Names
from brokerkit_rocketmq.producer import Limits, RocketMQProducer
from brokerkit_rocketmq.pulling import PullLimits
from brokerkit_rocketmq.purge import Purging
from brokerkit_rocketmq.remoting.codes import ResponseCode
from brokerkit_rocketmq.remoting.frames import Frame
from brokerkit_rocketmq.remoting.signing import Signer
from brokerkit_rocketmq.settings import RocketMQSettings
from brokerkit_rocketmq.sources import broadcast_source, group_source
from brokerkit_rocketmq.stats import Figures
from brokerkit_rocketmq.topology import Topology

__all__ = ["ALWAYS", "RocketMQConnection"]

#: What every broker and every topic offers.
ALWAYS = frozenset(
    {
        Capability.DURABLE,
        Capability.MULTIPROCESS,
        Capability.CONSUMER_GROUPS,
        Capability.TAGS,
        Capability.DELAYED_SEND,
        Capability.DEAD_LETTER,
        Capability.BROADCAST,
        Capability.INBOX,
        Capability.BROWSE,
        Capability.ORDERED_BY_KEY,
        Capability.FROM_START,
        Capability.MANAGE,
        Capability.PURGE,
        Capability.STATS,
        Capability.STRICT_TOPICS,
    }
)


class _Driver(Protocol):
    async def aclose(self) -> None: ...


class RocketMQConnection:
    """A `brokerkit.spi.Connection` with everything optional but what RocketMQ lacks.

    Brokers tell the members of a group by their connections, so each consumer is a client with links of its own; all
    else shares one.
    """

    def __init__(self, settings: RocketMQSettings, name_servers: Sequence[Address], options: ConnectOptions) -> None:
        """Raise `ConfigurationError`; no I/O before `open`."""
        self._settings = settings
        self._options = options
        self._clock = options.clock
        self._client_options = _client_options(settings, name_servers, options)
        self._client = self._new_client()
        names = self._names = Names(options.topics, settings)
        self._codec = Codec(names, settings, options.clock)
        making = Making(self._client, options.attempt_timeout, settings.cluster)
        self._topology = Topology(making, names)
        self._figures = Figures(self._topology, making, names, options.clock)
        self._purging = Purging(self._topology, making, self._figures, names, options.clock)
        self._letters = DeadLetters(
            self._topology, making, names, self._codec, options.clock, producer=settings.producer_group
        )
        self._making = making
        self._native_admin = RocketMQAdmin(making, self._topology, self._figures, names, self._codec, options.clock)
        checks = GroupChecks(self._native_admin, making, self._topology, names, settings.producer_group)
        self._diagnosis = Diagnosis(self._native_admin, making, checks, options.topics, options.clock)
        self._drivers: set[_Driver] = set()
        #: Sends what consumers give back.
        self._returning: RocketMQProducer | None = None
        self._closed: asyncio.Future[None] | None = None

    def _new_client(self) -> Client:
        return Client(self._client_options, self._clock)

    async def open(self) -> None:
        """Connect.  Raise `BrokerUnavailable`, `AccessRefused` or `ConfigurationError`."""
        try:
            await self._client.open()
            self._client.register_producer(self._settings.producer_group)
            await self._log_in()
        except BaseException:
            await self.aclose()
            raise

    async def _log_in(self) -> None:
        """Return when a broker knows us: NameServers do not look at credentials."""
        client = self._client
        probe = client.registrations.heartbeat()
        brokers = await client.brokers()
        answers = await asyncio.gather(
            *(client.call(broker, probe.code, probe.fields, probe.body, slaves=True) for broker in brokers),
            return_exceptions=True,
        )
        refusals: list[BrokerError] = []
        for answer in answers:
            if isinstance(answer, Frame):
                if answer.code == ResponseCode.SUCCESS:
                    return
                refusals.append(refused(answer, "logging in"))
            elif isinstance(answer, BrokerError):
                refusals.append(answer)
            else:
                raise answer
        refusal = next((error for error in refusals if not error.retryable), refusals[0])
        if isinstance(refusal, BrokerUnavailable) and len(refusals) == len(brokers):
            addresses = [f"{name} at {', '.join(ids.values())}" for name, ids in brokers.items()]
            known = dict(zip(addresses, refusals, strict=True))
            raise unreachable_brokers(", ".join(map(str, client.name_servers.addresses)), known) from refusal
        raise refusal

    @property
    def client(self) -> Client:
        """The client that sends and manages."""
        return self._client

    def capabilities(self, topic: str) -> frozenset[Capability]:
        """Return what holds for ``topic`` on this broker."""
        offers = ALWAYS
        if self._settings.shadow == "auto":
            offers |= {Capability.REDELIVERED}
        if not self._names.is_ordered(topic) or self._names.keeps_total_order(topic):
            offers |= {Capability.ORDERED}
        return offers

    # --- drivers ---

    async def open_producer(self) -> RocketMQProducer:
        self._check()
        producer = self._new_producer()
        self._drivers.add(producer)
        return producer

    def _new_producer(self) -> RocketMQProducer:
        return RocketMQProducer(
            self._client,
            self._names,
            self._codec,
            Limits(
                attempt_timeout=self._options.attempt_timeout,
                max_message_size=self._settings.max_message_size,
                window=self._settings.window,
            ),
            group=self._settings.producer_group,
            clock=self._clock,
            on_close=self._drivers.discard,
            missing=self._making.missing,
        )

    async def open_consumer(self, options: ConsumerOptions) -> RocketMQConsumer:
        self._check()
        await self._topology.require(options.topic, None if options.broadcast else options.group)
        if options.broadcast:
            source = broadcast_source(self._names, options)
        else:
            source = group_source(self._names, options, shadow=self._settings.shadow == "auto")
        consumer = RocketMQConsumer(
            self._new_client(),
            source,
            self._codec,
            clock=self._clock,
            limits=PullLimits.of(self._settings, options.prefetch),
            store=None if options.broadcast or options.ordered else self._store,
            lock_pause=self._settings.suspend_current_queue_time / 1000,
            on_close=self._drivers.discard,
        )
        await self._adopt(consumer)
        return consumer

    async def open_inbox(self) -> RocketMQInbox:
        self._check()
        inbox = RocketMQInbox(
            self._new_client(),
            self._making,
            self._names,
            self._codec,
            clock=self._clock,
            on_close=self._drivers.discard,
        )
        await self._adopt(inbox)
        return inbox

    async def _store(self, messages: Sequence[Outbound]) -> Sequence[BrokerError | None]:
        """Store what a consumer gives back; it may close when all producers of the application are closed."""
        if self._returning is None:
            self._returning = self._new_producer()
        return await self._returning.send(messages)

    async def _adopt(self, driver: RocketMQConsumer | RocketMQInbox | DeadLetterReader) -> None:
        # From the start, so that a close meanwhile finds it.
        self._drivers.add(driver)
        try:
            await driver.open()
            self._check()
        except BaseException:
            await driver.aclose()
            raise

    # --- dead letters ---

    async def take_dead(self, topic: str, group: str, ids: Sequence[str] | None) -> DeadLetterReader:
        self._check()
        reader = await self._letters.take(topic, group, ids, self._drivers.discard)
        await self._adopt(reader)
        return reader

    async def browse(self, topic: str, group: str, limit: int) -> Sequence[Inbound]:
        self._check()
        return await self._letters.browse(topic, group, limit)

    # --- managing ---

    async def declare(self, topic: TopicSpec, group: GroupSpec | None) -> None:
        self._check()
        await self._topology.declare(topic, group)

    async def verify(self, topic: TopicSpec, group: GroupSpec | None) -> None:
        self._check()
        await self._topology.verify(topic, group)

    async def delete(self, topic: str, group: str | None) -> None:
        self._check()
        spec = self._options.topics.get(topic)
        await self._topology.delete(topic, group, tuple(spec.groups) if spec is not None else ())

    async def purge(self, topic: str, group: str) -> int:
        self._check()
        return await self._purging.purge(topic, group)

    async def stats(self, topic: str, group: str) -> GroupStats:
        self._check()
        return await self._figures.stats(topic, group)

    # --- what only RocketMQ has ---

    @property
    def native_admin(self) -> RocketMQAdmin:
        """What is not portable: lag by queue, brokers, offsets, members, messages by key."""
        return self._native_admin

    async def diagnose(self) -> Sequence[Finding]:
        """Look for what commonly goes wrong."""
        self._check()
        return await self._diagnosis.diagnose()

    # --- the connection ---

    async def ping(self, timeout: float) -> None:
        """Return when a broker answered."""
        self._check()
        try:
            async with asyncio.timeout(timeout):
                await self._log_in()
        except TimeoutError:
            raise BrokerUnavailable(f"no broker answered in {timeout:g} s", backend=NAME) from None

    async def aclose(self) -> None:
        if self._closed is not None:
            if not self._closed.done():
                await asyncio.wait((self._closed,))
            return
        self._closed = asyncio.get_running_loop().create_future()
        try:
            closing = [driver.aclose() for driver in tuple(self._drivers)]
            results = await asyncio.gather(*closing, return_exceptions=True)
            for result in results:
                if isinstance(result, BaseException) and not isinstance(result, BrokerError):
                    raise result
        finally:
            try:
                if self._returning is not None:
                    await self._returning.aclose()
                await self._client.aclose()
            finally:
                self._closed.set_result(None)

    def _check(self) -> None:
        if self._closed is not None:
            raise Closed("the connection is closed", backend=NAME)


def _client_options(
    settings: RocketMQSettings, name_servers: Sequence[Address], options: ConnectOptions
) -> ClientOptions:
    def plain(secret: SecretStr | None) -> str | None:
        return None if secret is None else secret.get_secret_value()

    access_key, secret_key = plain(settings.access_key), plain(settings.secret_key)
    signer = None
    if access_key is not None and secret_key is not None:
        signer = Signer(access_key, secret_key, plain(settings.security_token))
    tls = None
    if settings.tls:
        tls = TlsOptions(
            verify=settings.verify,
            ca_file=settings.ca_file,
            cert_file=settings.cert_file,
            key_file=settings.key_file,
            key_password=plain(settings.key_password),
            server_name=settings.server_name,
        )
    return ClientOptions(
        name_servers=tuple(name_servers),
        dial=DialOptions(
            timeout=settings.connection_timeout or options.attempt_timeout,
            tls=tls,
            signer=signer,
            address_map=settings.address_map,
            heartbeat=settings.heartbeat,
        ),
        links=LinkOptions(
            heartbeat=settings.heartbeat,
            first_pause=settings.retry_delay,
            longest_pause=max(settings.retry_delay, settings.retry_max_delay),
        ),
        instance_name=settings.instance_name,
        timeout=options.attempt_timeout,
        route_interval=settings.route_refresh,
    )
