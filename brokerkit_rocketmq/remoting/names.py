"""Names of topics and groups: what the broker takes, what it derives from them, and how a namespace is put on.

From ``TopicValidator``, ``Validators``, ``MixAll`` and ``NamespaceUtil`` of apache/rocketmq.
"""

from __future__ import annotations

import re

__all__ = [
    "DEAD_PREFIX",
    "MAX_GROUP",
    "MAX_TOPIC",
    "RETRY_PREFIX",
    "check_group",
    "check_topic",
    "dead_topic",
    "is_system_group",
    "is_system_topic",
    "java_hash",
    "retry_topic",
    "unwrap",
    "wrap",
]

RETRY_PREFIX = "%RETRY%"
DEAD_PREFIX = "%DLQ%"
#: Characters of a topic; its retry and dead-letter topics count too (``TopicValidator.TOPIC_MAX_LENGTH``).
MAX_TOPIC = 127
#: Characters of a group.  5.x answers the heartbeat of a longer one with success and does not register it.
MAX_GROUP = 120

_NAME = re.compile(r"[%|a-zA-Z0-9_-]+", re.ASCII)
_SYSTEM_TOPICS = frozenset(
    {
        "TBW102",
        "SCHEDULE_TOPIC_XXXX",
        "BenchmarkTest",
        "RMQ_SYS_TRANS_HALF_TOPIC",
        "RMQ_SYS_TRACE_TOPIC",
        "RMQ_SYS_TRANS_OP_HALF_TOPIC",
        "TRANS_CHECK_MAX_TIME_TOPIC",
        "SELF_TEST_TOPIC",
        "OFFSET_MOVED_EVENT",
    }
)
_SYSTEM_TOPIC_PREFIX = "rmq_sys_"
_SYSTEM_GROUP_PREFIX = "CID_RMQ_SYS_"
_SEPARATOR = "%"


def retry_topic(group: str) -> str:
    """Return the topic that holds the retries of a native group."""
    return RETRY_PREFIX + group


def dead_topic(group: str) -> str:
    """Return the topic that holds the dead letters of a native group."""
    return DEAD_PREFIX + group


def check_topic(name: str) -> str:
    """Return ``name``; raise ValueError unless a broker takes it as a topic that an application may use."""
    _check(name, "topic", MAX_TOPIC)
    if is_system_topic(name):
        raise ValueError(f"topic {name!r} belongs to RocketMQ itself; take another name")
    return name


def check_group(name: str) -> str:
    """Return ``name``; raise ValueError unless a broker takes it, and its retry topic, from an application."""
    _check(name, "group", min(MAX_GROUP, MAX_TOPIC - len(RETRY_PREFIX)))
    if is_system_group(name):
        raise ValueError(f"group {name!r} belongs to RocketMQ itself; take another name")
    return name


def _check(name: str, what: str, longest: int) -> None:
    if not name:
        raise ValueError(f"a {what} name must not be empty")
    if len(name) > longest:
        raise ValueError(
            f"{what} {name[:40]!r}… has {len(name)} characters; RocketMQ takes {longest}, its namespace included"
        )
    if _NAME.fullmatch(name) is None:
        raise ValueError(f"{what} {name!r}: RocketMQ takes letters, digits, '_', '-', '%' and '|' only")


def is_system_topic(name: str) -> bool:
    """Return whether the broker uses the topic for itself."""
    return name in _SYSTEM_TOPICS or name.startswith(_SYSTEM_TOPIC_PREFIX)


def is_system_group(name: str) -> bool:
    """Return whether the broker uses the group for itself."""
    return name.startswith(_SYSTEM_GROUP_PREFIX)


def wrap(namespace: str | None, name: str) -> str:
    """Return the topic or group within the namespace: ``ns%topic``, ``%RETRY%ns%group``, ``%DLQ%ns%group``."""
    if not namespace or not name or is_system_topic(name) or is_system_group(name):
        return name
    prefix, rest = _split(name)
    if rest.startswith(namespace + _SEPARATOR):
        return name
    return f"{prefix}{namespace}{_SEPARATOR}{rest}"


def unwrap(namespace: str | None, name: str) -> str:
    """Return the topic or group without the namespace; a name outside of it is returned as it is."""
    if not namespace:
        return name
    prefix, rest = _split(name)
    return prefix + rest.removeprefix(namespace + _SEPARATOR)


def _split(name: str) -> tuple[str, str]:
    for prefix in (RETRY_PREFIX, DEAD_PREFIX):
        if name.startswith(prefix):
            return prefix, name[len(prefix) :]
    return "", name


def java_hash(text: str) -> int:
    """Return Java's ``String.hashCode`` as a signed 32-bit number; brokers compare tags by it."""
    units = text.encode("utf-16-be", "surrogatepass")
    value = 0
    for at in range(0, len(units), 2):
        value = (31 * value + (units[at] << 8 | units[at + 1])) & 0xFFFFFFFF
    return value - (1 << 32) if value & 0x80000000 else value
