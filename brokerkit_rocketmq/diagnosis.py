"""What commonly goes wrong with RocketMQ: `Diagnosis` looks for it, and changes nothing."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping, Sequence

from brokerkit.errors import AccessRefused, BrokerError, BrokerUnavailable, TopicNotFound
from brokerkit.spi import Clock, Finding, TopicSpec
from brokerkit_rocketmq.admin import RocketMQAdmin
from brokerkit_rocketmq.admin_data import BrokerInfo
from brokerkit_rocketmq.errors import NAME
from brokerkit_rocketmq.group_checks import GroupChecks
from brokerkit_rocketmq.making import Making
from brokerkit_rocketmq.name_server_checks import name_server_findings
from brokerkit_rocketmq.remoting.codes import RequestCode, ResponseCode

__all__ = ["Diagnosis", "unreachable_brokers"]

#: How full a disk may be: from 0.75 on (diskMaxUsedSpaceRatio) the broker deletes the oldest messages, whether they
#: were read or not, from 0.85 on (diskSpaceCleanForciblyRatio) in haste, from 0.9 on (diskSpaceWarningLevelRatio) it
#: refuses all sends.
_DISK_DELETES, _DISK_FULL = 0.75, 0.85
#: Seconds that the broker's clock may differ from ours; what it tells of its own is in whole seconds.
_SKEW = 5.0
#: ``[ 0 days, 0 hours, 26 minutes, 44 seconds ]``
_RUNTIME = re.compile(r"(\d+) days, (\d+) hours, (\d+) minutes, (\d+) seconds")
#: Of all versions of 4.x.
_OLD = re.compile(r"V[34]_")


def unreachable_brokers(name_servers: str, errors: Mapping[str, BrokerError]) -> BrokerUnavailable:
    """Return the error for brokers that cannot be reached though a NameServer tells of them.

    ``errors``: why, by the broker's name and address.
    """
    listed = "; ".join(f"{broker}: {error.message}" for broker, error in errors.items())
    return BrokerUnavailable(
        f"the NameServer {name_servers} answers, but not the brokers that it names ({listed}). {_BROKER_IP}",
        backend=NAME,
    )


_BROKER_IP = (
    "These are the addresses that the brokers registered themselves: set brokerIP1 in broker.conf to one that clients "
    "can reach, which the one inside of a container is not, or map them here: rocketmq: {address_map: {registered: "
    "reachable}}"
)


class Diagnosis:
    """The checks of one connection; none raises a `BrokerError`."""

    def __init__(
        self, admin: RocketMQAdmin, making: Making, checks: GroupChecks, topics: Mapping[str, TopicSpec], clock: Clock
    ) -> None:
        self._admin = admin
        self._making = making
        self._checks = checks
        self._topics = topics
        self._clock = clock

    async def diagnose(self) -> list[Finding]:
        """Return what is good, doubtful and wrong."""
        asking = self._making.asking
        found = await name_server_findings(asking.client.name_servers, asking.timeout)
        try:
            brokers = await self._admin.brokers()
        except BrokerError as error:
            cure = "look at the NameServer's log"
            return [*found, Finding(level="wrong", about="brokers", text=error.message, cure=cure)]
        for broker in brokers:
            found += self._broker(broker)
        found += _versions(brokers)
        masters = [broker for broker in brokers if broker.id == 0 and broker.problem is None]
        for settings in await asyncio.gather(*(self._settings(broker) for broker in masters)):
            found += settings
        for name in self._topics:
            for group in self._topics[name].groups:
                found += await self._group(name, group)
        return found

    # --- brokers --------------------------------------------------------------------------------------------------

    def _broker(self, broker: BrokerInfo) -> list[Finding]:
        about = f"broker {broker.name}" + (f" (copy {broker.id})" if broker.id else "")
        if broker.problem is not None:
            return [
                Finding(
                    level="wrong" if broker.id == 0 else "advice",
                    about=about,
                    text=f"the NameServer tells of it at {broker.address}, where it does not answer: {broker.problem}",
                    cure=_BROKER_IP,
                )
            ]
        found = [Finding(level="ok", about=about, text=f"{broker.version or 'some version'} at {broker.address}")]
        found += _disk(about, broker)
        skew = self._skew(broker)
        if skew is not None and abs(skew) > _SKEW:
            found.append(
                Finding(
                    level="wrong",
                    about=about,
                    text=f"its clock is {abs(skew):.0f} s {'ahead of' if skew > 0 else 'behind'} the one of this host",
                    cure="let a time service keep both: delays, ttl and the ages of messages are reckoned with them",
                )
            )
        return found

    def _skew(self, broker: BrokerInfo) -> float | None:
        """Return how far the broker's clock is ahead; None when it does not say."""
        runtime = _RUNTIME.search(broker.info.get("runtime", ""))
        if broker.started is None or runtime is None:
            return None
        days, hours, minutes, seconds = map(int, runtime.groups())
        # It tells whole seconds, so on average half a second more have passed.
        return broker.started + ((days * 24 + hours) * 60 + minutes) * 60 + seconds + 0.5 - self._clock.time()

    async def _settings(self, broker: BrokerInfo) -> list[Finding]:
        about = f"broker {broker.name}"
        asking = self._making.asking
        try:
            frame = await asking.client.call(broker.name, RequestCode.GET_BROKER_CONFIG, timeout=asking.timeout)
        except BrokerError:
            return []
        if frame.code != ResponseCode.SUCCESS:
            return []  # an administrator may
        lines = frame.body.decode("utf-8", "replace").splitlines()
        settings = dict(line.split("=", 1) for line in lines if "=" in line)
        found = []
        if settings.get("autoCreateTopicEnable") == "true":
            found.append(
                Finding(
                    level="advice",
                    about=about,
                    text="autoCreateTopicEnable=true: a client with a typo in a topic makes one, on one broker only",
                    cure="autoCreateTopicEnable=false in broker.conf; brokerkit declares its topics and needs it not",
                )
            )
        if settings.get("flushDiskType") == "ASYNC_FLUSH":
            found.append(
                Finding(
                    level="ok",
                    about=about,
                    text="flushDiskType=ASYNC_FLUSH: what a send confirmed survives the broker's process, and not a "
                    "loss of power",
                )
            )
        return found

    # --- groups ---------------------------------------------------------------------------------------------------

    async def _group(self, topic: str, group: str) -> list[Finding]:
        about = f"group {topic} / {group}"
        try:
            return await self._checks.look(about, topic, group)
        except TopicNotFound:
            return []  # whether it should be there, others say
        except AccessRefused as error:
            return [
                Finding(
                    level="advice",
                    about=about,
                    text=f"its members cannot be seen: {error.message}",
                    cure="grant Get on the topic and on the group (5.x)",
                )
            ]
        except BrokerError as error:
            return [Finding(level="advice", about=about, text=f"it cannot be looked at now: {error.message}")]


def _disk(about: str, broker: BrokerInfo) -> list[Finding]:
    used = broker.disk_used
    if used is None or used < 0:
        return []
    text = f"the disk of its messages is {used:.0%} full"
    if used >= _DISK_FULL:
        cure = "make room, or shorten fileReservedTime: from 90 % on it refuses all messages"
        return [Finding(level="wrong", about=about, text=text, cure=cure)]
    if used >= _DISK_DELETES:
        cure = "make room: from 75 % on (diskMaxUsedSpaceRatio) it deletes the oldest messages, also unread ones"
        return [Finding(level="advice", about=about, text=text, cure=cure)]
    return [Finding(level="ok", about=about, text=text)]


def _versions(brokers: Sequence[BrokerInfo]) -> list[Finding]:
    old = [broker.name for broker in brokers if _OLD.match(broker.version or "")]
    new = [broker.name for broker in brokers if broker.version is not None and broker.name not in old]
    if old and new:
        return [
            Finding(
                level="advice",
                about="versions",
                text=f"{', '.join(sorted(set(old)))} are 4.x, {', '.join(sorted(set(new)))} 5.x: a delay is kept "
                f"exactly by the new ones, and by the old ones in steps of their delay levels",
                cure="upgrade them together",
            )
        ]
    if old:
        text = "4.x delays by levels only: longer delays are made of several steps, which a consumer of the group makes"
        return [Finding(level="ok", about="delays", text=text)]
    return []
