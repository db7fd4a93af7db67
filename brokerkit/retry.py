"""When a failed message is tried again, and how long it waits until then."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, Protocol, cast

from brokerkit.errors import ConfigurationError, DecodeError, Reject, Retry

__all__ = ["RetryLayer", "RetryOverrides", "RetryPolicy", "resolve_policy"]

#: Seconds.  Full jitter may draw (almost) nothing; a retry without any delay would meet the fault that it flees.
_FLOOR = 0.01

_FIELDS = ("max_attempts", "base_delay", "max_delay", "multiplier", "jitter", "retryable", "fatal", "exhausted")


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """What becomes of a message whose handler failed.

    Raise `ConfigurationError` that names the field and its value when a value cannot work.
    """

    #: Starts of the handler in all, the first one included.
    max_attempts: int = 4
    #: Longest delay after the first failure, in seconds.  0: every retry comes at once.
    base_delay: float = 1.0
    #: No delay is longer than this, in seconds.
    max_delay: float = 30.0
    #: The longest delay grows by this factor with every failure.
    multiplier: float = 2.0
    #: ``full``: uniform between 0 and the longest delay, so that messages that failed together come back apart.
    #: ``none``: always the longest delay.
    jitter: Literal["full", "none"] = "full"
    #: Failures that are worth another attempt; any other one makes a dead letter at once.
    retryable: tuple[type[BaseException], ...] = (Exception,)
    #: Failures that never are, whatever ``retryable`` says.
    fatal: tuple[type[BaseException], ...] = ()
    #: After the last attempt: ``dead`` makes a dead letter, ``requeue`` goes on for ever.
    exhausted: Literal["dead", "requeue"] = "dead"

    def __post_init__(self) -> None:
        attempts: Any = self.max_attempts
        if not isinstance(attempts, int) or isinstance(attempts, bool) or attempts < 1:
            raise _illegal("max_attempts", attempts, "a whole number of at least 1")
        _check_number("base_delay", self.base_delay, 0.0)
        _check_number("max_delay", self.max_delay, 0.0)
        _check_number("multiplier", self.multiplier, 1.0)
        if self.max_delay < self.base_delay:
            need = f"at least base_delay, which is {self.base_delay!r}: raise max_delay or lower base_delay"
            raise _illegal("max_delay", self.max_delay, need)
        if self.jitter not in ("full", "none"):
            raise _illegal("jitter", self.jitter, '"full" or "none"')
        if self.exhausted not in ("dead", "requeue"):
            raise _illegal("exhausted", self.exhausted, '"dead" or "requeue"')
        _check_exceptions("retryable", self.retryable)
        _check_exceptions("fatal", self.fatal)

    def delay(self, attempt: int, random: Callable[[], float]) -> float:
        """Return the seconds to wait after ``attempt`` (the one that failed, 1 is the first) failed.

        ``random`` returns a float in [0, 1), as `random.random` does.  The delay is at most ``max_delay``.
        """
        try:
            longest = min(self.max_delay, self.base_delay * self.multiplier ** (max(attempt, 1) - 1))
        except OverflowError:
            longest = self.max_delay if self.base_delay else 0.0
        if self.jitter == "none":
            return longest
        return max(longest * (1.0 - random()), min(longest, _FLOOR))

    def is_retryable(self, exc: BaseException) -> bool:
        """Return whether a handler that failed with ``exc`` may be started again.

        `Retry` always may, `Reject` and `DecodeError` never; then ``fatal`` goes before ``retryable``.
        """
        if isinstance(exc, Retry):
            return True
        if isinstance(exc, (Reject, DecodeError, *self.fatal)):
            return False
        return isinstance(exc, self.retryable)


class RetryOverrides(Protocol):
    """A part of a retry policy, e.g. a section of the settings.  None: as the next layer says.

    The other fields of `RetryPolicy` are read too where the object has them.
    """

    @property
    def max_attempts(self) -> int | None: ...

    @property
    def base_delay(self) -> float | None: ...

    @property
    def max_delay(self) -> float | None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryLayer:
    """A plain `RetryOverrides`, for compatibility keys (``max_reconsume_times: n`` is ``max_attempts=n + 1``)."""

    max_attempts: int | None = None
    base_delay: float | None = None
    max_delay: float | None = None


def resolve_policy(*layers: RetryPolicy | RetryOverrides | None) -> RetryPolicy:
    """Merge ``layers``, the strongest first: handler, topic, settings, compatibility keys.

    A `RetryPolicy` is complete: it fills in whatever stronger layers left open, and weaker layers are not looked
    at.  What no layer says has its default.  Raise `ConfigurationError` when the merged values cannot work.
    """
    chosen: dict[str, object] = {}
    for layer in layers:
        if layer is None:
            continue
        if isinstance(layer, RetryPolicy) and not chosen:
            return layer
        for field in _FIELDS:
            value = getattr(layer, field, None)
            if value is not None:
                chosen.setdefault(field, value)
        if isinstance(layer, RetryPolicy):
            break
    return RetryPolicy(**cast("dict[str, Any]", chosen))


def _check_number(field: str, value: Any, least: float) -> None:
    legal = isinstance(value, int | float) and not isinstance(value, bool)
    if not legal or not math.isfinite(value) or value < least:
        raise _illegal(field, value, f"a finite number of at least {least:g}")


def _check_exceptions(field: str, value: Any) -> None:
    if not isinstance(value, tuple) or not all(
        isinstance(one, type) and issubclass(one, BaseException) for one in value
    ):
        raise _illegal(field, value, "a tuple of exception classes, e.g. (OSError, TimeoutError)")


def _illegal(field: str, value: object, need: str) -> ConfigurationError:
    return ConfigurationError(f"RetryPolicy: {field} is {value!r}; it must be {need}")
