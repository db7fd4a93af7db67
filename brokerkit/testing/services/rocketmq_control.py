"""What an operator does to a running RocketMQ: topics, groups, settings, routes."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Iterable, Mapping
from typing import ClassVar

from brokerkit.clock import SystemClock
from brokerkit.errors import BrokerError, BrokerUnavailable, ConfigurationError
from brokerkit.testing.services.rocketmq_accounts import delete_account, set_account
from brokerkit.testing.services.rocketmq_address import RocketMQAddress, RocketMQBrokerAddress
from brokerkit.testing.services.rocketmq_name_server import registered_brokers
from brokerkit.testing.services.rocketmq_options import RocketMQAccount
from brokerkit.testing.services.rocketmq_wire import Answer, Login, ask, request

__all__ = ["RocketMQControl"]

#: org.apache.rocketmq.remoting.protocol.RequestCode
_UPDATE_AND_CREATE_TOPIC = 17
_GET_ALL_TOPIC_CONFIG = 21
_UPDATE_BROKER_CONFIG = 25
_GET_BROKER_CONFIG = 26
_GET_BROKER_RUNTIME_INFO = 28
_GET_ALL_CONSUMER_OFFSET = 43
_GET_ROUTEINFO_BY_TOPIC = 105
_UPDATE_AND_CREATE_SUBSCRIPTIONGROUP = 200
_GET_ALL_SUBSCRIPTIONGROUP_CONFIG = 201
_DELETE_SUBSCRIPTIONGROUP = 207
_DELETE_TOPIC_IN_BROKER = 215
_DELETE_TOPIC_IN_NAMESRV = 216
_SEND_MESSAGE_V2 = 310

#: org.apache.rocketmq.remoting.protocol.ResponseCode
_TOPIC_NOT_EXIST = 17

#: May be read and written (org.apache.rocketmq.common.constant.PermName).
_READ_AND_WRITE = 6

#: Seconds that the server may take to do what it was told.
_TIMEOUT = 60.0
_COPY_TIMEOUT = 180.0
_PAUSE = 0.05


class RocketMQControl:
    """The operator's view of the server at `address`, from whatever process.  All methods block.

    Requests are signed by the administrator where the ACL is on.  `BrokerError` with the server's words when it
    refuses, `BrokerUnavailable` when it does not answer.
    """

    name: ClassVar[str] = "rocketmq"
    origin: ClassVar[str] = "local"

    def __init__(self, address: RocketMQAddress) -> None:
        self.address = address

    @property
    def url(self) -> str:
        """The URL with all NameServers, for the administrator where the ACL is on."""
        return self.address.url()

    def ask(
        self, code: int, fields: Mapping[str, str] | None = None, body: bytes = b"", *, at: str | None = None
    ) -> Answer:
        """Return the answer to a request, whatever its code; without ``at``, a "host:port", of the first broker."""
        return ask(at or self.address.brokers[0].address, code, fields, body, login=self.address.admin)

    # --- topics and groups ------------------------------------------------------------------------------------

    def create_topic(
        self, name: str, *, queues: int = 4, perm: int = _READ_AND_WRITE, attributes: str = "", order: bool = False
    ) -> None:
        """Make or change a topic on all masters, and return when every NameServer tells of it.

        ``attributes`` are of 5.x, such as "+message.type=FIFO".
        """
        fields = {
            "topic": name,
            "defaultTopic": "TBW102",
            "readQueueNums": str(queues),
            "writeQueueNums": str(queues),
            "perm": str(perm),
            "topicFilterType": "SINGLE_TAG",
            "topicSysFlag": "0",
            "order": str(order).lower(),
        }
        if attributes:
            fields["attributes"] = attributes
        for broker in self.address.masters:
            self._do(broker.address, _UPDATE_AND_CREATE_TOPIC, fields)
        wanted = {broker.name for broker in self.address.masters}
        self._wait_until(lambda: all(wanted <= routed for routed in self._routes(name)), f"no route to {name!r}")

    def delete_topic(self, name: str) -> None:
        """Delete a topic with its messages on all masters, and the route to it.  No-op when it does not exist."""
        for broker in self.address.masters:
            self._do(broker.address, _DELETE_TOPIC_IN_BROKER, {"topic": name})
        for server in self.address.name_servers:
            self._do(server, _DELETE_TOPIC_IN_NAMESRV, {"topic": name})

    def create_group(self, name: str, *, max_retries: int = 16, changes: Mapping[str, object] | None = None) -> None:
        """Make or change a consumer group on all masters; ``changes`` are fields of SubscriptionGroupConfig."""
        config = {
            "groupName": name,
            "consumeEnable": True,
            "consumeFromMinEnable": True,
            "consumeBroadcastEnable": True,
            "retryQueueNums": 1,
            "retryMaxTimes": max_retries,
            "brokerId": 0,
            "whichBrokerWhenConsumeSlowly": 1,
            "notifyConsumerIdsChangedEnable": True,
            **(changes or {}),
        }
        for broker in self.address.masters:
            self._do(broker.address, _UPDATE_AND_CREATE_SUBSCRIPTIONGROUP, body=json.dumps(config).encode())

    def delete_group(self, name: str) -> None:
        """Delete a consumer group with its offsets on all masters."""
        fields = {"groupName": name, "cleanOffset": "true", "removeOffset": "true"}
        for broker in self.address.masters:
            self._do(broker.address, _DELETE_SUBSCRIPTIONGROUP, fields)

    def brokers_of(self, topic: str, *, name_server: str | None = None) -> frozenset[str]:
        """Return the names of the brokers that a NameServer, the first by default, routes a topic to."""
        answer = ask(
            name_server or self.address.name_servers[0],
            _GET_ROUTEINFO_BY_TOPIC,
            {"topic": topic, "acceptStandardJsonOnly": "true"},
        )
        if answer.code == _TOPIC_NOT_EXIST:
            return frozenset()
        if answer.code != 0:
            raise BrokerError(f"the route of {topic!r} cannot be asked: {answer.code} {answer.remark}")
        route = json.loads(answer.body)
        reachable = {broker["brokerName"] for broker in route["brokerDatas"] if broker["brokerAddrs"]}
        return frozenset(queue["brokerName"] for queue in route["queueDatas"]) & reachable

    # --- users ------------------------------------------------------------------------------------------------

    def set_account(self, account: RocketMQAccount) -> None:
        """Make an account or replace it, on all brokers; for a moment it does not exist.

        It has effect at once as a rule; a 4.9 that is just reading its file of accounts goes on with what was in it
        until it reads it again, 5 s later.  There, of two changes at the same time one may be lost.
        `ConfigurationError` when the ACL is off.
        """
        for broker in self.address.brokers:
            set_account(broker.address, self.address.major, self._administrator(), account)

    def delete_account(self, access_key: str) -> None:
        """Delete an account on all brokers.  No-op when it does not exist; `ConfigurationError` when the ACL is off."""
        for broker in self.address.brokers:
            delete_account(broker.address, self.address.major, self._administrator(), access_key)

    def _administrator(self) -> Login:
        if self.address.admin is None:
            raise ConfigurationError("this server has no accounts: make it with RocketMQOptions(acl=True)")
        return self.address.admin

    # --- brokers ----------------------------------------------------------------------------------------------

    def runtime(self, broker: str | None = None) -> dict[str, str]:
        """Return the figures of a broker, a "host:port", the first by default.

        Waits for a broker that has run for less than a second: it has none yet and answers with an exception.
        """
        address = broker or self.address.brokers[0].address
        found: list[Answer] = []

        def answers() -> bool:
            found[:] = [ask(address, _GET_BROKER_RUNTIME_INFO, login=self.address.admin)]
            return found[0].code == 0 or "NoSuchElementException" not in found[0].remark

        self._wait_until(answers, f"{address} has no figures")
        if found[0].code != 0:
            raise BrokerError(f"{address} refused to tell its figures: {found[0].code} {found[0].remark[:500]}")
        table: dict[str, str] = json.loads(found[0].body)["table"]
        return table

    def settings(self, broker: str | None = None) -> dict[str, str]:
        """Return all settings of a broker, a "host:port", the first by default."""
        answer = self._do(broker or self.address.brokers[0].address, _GET_BROKER_CONFIG)
        pairs = (line.partition("=") for line in answer.body.decode().splitlines())
        return {name: value for name, equals, value in pairs if equals}

    def configure(self, changes: Mapping[str, object], *, broker: str | None = None) -> None:
        """Change settings at run time, of one broker, a "host:port", or of all; RocketMQ writes them to broker.conf.

        Many have no effect before the next start, and a private server writes its own broker.conf before that.
        """
        body = "".join(f"{name}={value}\n" for name, value in changes.items()).encode()
        for address in [each.address for each in self.address.brokers] if broker is None else [broker]:
            self._do(address, _UPDATE_BROKER_CONFIG, body=body)

    # --- what the parts know of each other ---------------------------------------------------------------------

    def register(self) -> None:
        """Make all brokers tell all NameServers of themselves, and return when these know.

        They do it every 10 s anyway; a NameServer that has started knows nothing before.
        """
        for broker in self.address.brokers:
            # The one setting whose change makes a broker register completely (AdminBrokerProcessor).
            perm = self.settings(broker.address)["brokerPermission"]
            self.configure({"brokerPermission": perm}, broker=broker.address)
        self.wait_until_registered()

    def wait_until_registered(self, brokers: Iterable[RocketMQBrokerAddress] | None = None) -> None:
        """Return when every NameServer tells clients of ``brokers``, by default all."""
        wanted = {(broker.name, broker.id): broker.address for broker in brokers or self.address.brokers}
        self._wait_until(
            lambda: all(wanted.items() <= registered_brokers(server).items() for server in self.address.name_servers),
            "not all brokers are registered",
        )

    def wait_until_copied(self) -> None:
        """Return when every slave has the messages, topics, groups and offsets of its master.

        Messages take a moment, the rest comes every 10 s on 4.9.x and every 60 s on 5.x; and 3 s after a start.
        """
        masters = {broker.name: broker.address for broker in self.address.masters}
        pairs = [(masters[broker.name], broker.address) for broker in self.address.brokers if broker.id != 0]
        self._wait_until(
            lambda: all(self._content(master) == self._content(slave) for master, slave in pairs),
            "a slave differs from its master",
            timeout=_COPY_TIMEOUT,
        )

    def wait_until_replicating(self) -> None:
        """Return when every master that is set to wait for its slaves has one; it leaves a message in the log."""
        topic = "brokerkit-replication"
        self.create_topic(topic, queues=1)
        # org.apache.rocketmq.remoting.protocol.header.SendMessageRequestHeaderV2
        short = {"a": topic, "b": topic, "c": "TBW102", "d": "1", "e": "0", "f": "0", "g": "0", "h": "0", "i": ""}

        def confirmed() -> bool:
            answers = [self.ask(_SEND_MESSAGE_V2, short, b"?", at=broker.address) for broker in self.address.masters]
            return all(answer.code == 0 for answer in answers)

        self._wait_until(confirmed, "a master has no slave")
        self.delete_topic(topic)

    def _content(self, broker: str) -> tuple[object, ...]:
        topics = _table(self._do(broker, _GET_ALL_TOPIC_CONFIG), "topicConfigTable")
        groups = _table(self._do(broker, _GET_ALL_SUBSCRIPTIONGROUP_CONFIG), "subscriptionGroupTable")
        offsets = _table(self._do(broker, _GET_ALL_CONSUMER_OFFSET), "offsetTable")
        return self.runtime(broker)["commitLogMaxOffset"], topics.keys(), groups.keys(), offsets

    def _routes(self, topic: str) -> list[frozenset[str]]:
        return [self.brokers_of(topic, name_server=server) for server in self.address.name_servers]

    def _do(self, at: str, code: int, fields: Mapping[str, str] | None = None, body: bytes = b"") -> Answer:
        return request(at, code, fields, body, login=self.address.admin)

    def _wait_until(self, reached: Callable[[], bool], failure: str, *, timeout: float = _TIMEOUT) -> None:
        clock = SystemClock()
        deadline = clock.monotonic() + timeout
        never = threading.Event()
        while not reached():
            if clock.monotonic() > deadline:
                raise BrokerUnavailable(f"{failure} after {timeout:g} s")
            never.wait(_PAUSE)


def _table(answer: Answer, name: str) -> dict[str, object]:
    # Numbers as keys have no quotes here, which is no JSON.
    text = re.sub(r"([{,])(-?\d+):", r'\1"\2":', answer.body.decode())
    table: dict[str, object] = json.loads(text)[name]
    return table
