"""What ``native=`` of a send may hold for RocketMQ."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from brokerkit.errors import ConfigurationError
from brokerkit_rocketmq.errors import NAME

__all__ = ["NativeOptions", "native_options"]

#: What brokerkit writes itself, and what would break the message or its delay.
_OURS = frozenset(
    {
        "UNIQ_KEY", "KEYS", "TAGS", "RETRY_TOPIC", "REAL_TOPIC", "REAL_QID", "DELAY", "TIMER_DELIVER_MS",
        "TIMER_DELAY_MS", "TIMER_DELAY_SEC", "TRAN_MSG", "CORRELATION_ID", "INNER_NUM", "INNER_BASE",
        "ORIGIN_MESSAGE_ID", "RECONSUME_TIME", "MAX_RECONSUME_TIMES",
    }
)  # fmt: skip
_INT32 = 1 << 31


@dataclass(frozen=True, slots=True)
class NativeOptions:
    """The checked options of one send."""

    #: Delay level, 1 for the first; None: no delay, or one by `due`.
    delay_level: int | None = None
    #: Do not wait for an answer: a send that returned may be lost.
    oneway: bool = False
    #: ``Message.flag``: 32 bits that RocketMQ stores and does not look at.
    flag: int = 0
    #: Further words by which the message is found; they become KEYS after the key.
    keys: tuple[str, ...] = ()
    #: Properties as they are, system properties that brokerkit does not write included.
    properties: Mapping[str, str] = field(default_factory=dict)


_NO_OPTIONS = NativeOptions()
_NAMES = tuple(NativeOptions.__dataclass_fields__)


def native_options(native: Mapping[str, Any] | None) -> NativeOptions:
    """Return the options; raise `ConfigurationError` that names the bad one."""
    if not native:
        return _NO_OPTIONS
    if not isinstance(native, Mapping):
        raise _wrong(f"they are a mapping, not {type(native).__name__}")
    unknown = sorted(str(name) for name in native if name not in _NAMES)
    if unknown:
        raise _wrong(f"{unknown[0]!r} is unknown; known are {', '.join(_NAMES)}")
    level = native.get("delay_level")
    flag, oneway = native.get("flag", 0), native.get("oneway", False)
    if level is not None and not _is_int(level, 1, 1000):
        raise _wrong(f"delay_level is a number from 1 on, not {level!r}")
    if not _is_int(flag, -_INT32, _INT32):
        raise _wrong(f"flag is a number of 32 bits, not {flag!r}")
    if not isinstance(oneway, bool):
        raise _wrong(f"oneway is True or False, not {oneway!r}")
    return NativeOptions(
        delay_level=level,
        oneway=oneway,
        flag=flag,
        keys=_keys(native.get("keys")),
        properties=_properties(native.get("properties")),
    )


def _is_int(value: object, lowest: int, beyond: int) -> bool:
    return type(value) is int and lowest <= value < beyond


def _keys(given: object) -> tuple[str, ...]:
    if given is None:
        return ()
    if isinstance(given, str) or not isinstance(given, list | tuple | set | frozenset):
        raise _wrong(f"keys are a list of texts, not {type(given).__name__}")
    for key in given:
        if not isinstance(key, str) or not key or not _is_storable(key) or key.split() != [key]:
            raise _wrong("keys are texts without blanks and control characters")
    return tuple(given)


def _properties(given: object) -> Mapping[str, str]:
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        raise _wrong(f"properties are a mapping of texts to texts, not {type(given).__name__}")
    for name, value in given.items():
        if not isinstance(name, str) or not isinstance(value, str) or not name or not value:
            raise _wrong(f"property {str(name)[:40]!r}: name and value are texts, and RocketMQ drops empty ones")
        if not _is_storable(name) or not _is_storable(value):
            # The value is left out: it may be a token.
            raise _wrong(f"property {name[:40]!r} or its value holds \\x01, \\x02 or what UTF-8 cannot encode")
        if name in _OURS or name[:3].lower() == "bk-":
            raise _wrong(f"property {name!r} is written by brokerkit; use the options of send")
    return dict(given)


def _is_storable(text: str) -> bool:
    if "\x01" in text or "\x02" in text:
        return False
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _wrong(problem: str) -> ConfigurationError:
    return ConfigurationError(f"native options of a send: {problem}", backend=NAME)
