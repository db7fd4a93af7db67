"""The delay wheel: delays of any length on a RabbitMQ without plugins.

A delay is counted in units of 100 ms and written as eight hexadecimal digits.  For each digit there is an exchange
``bk.delay.<place>`` and, for each value but 0, a queue ``bk.delay.<place>.<value>`` whose messages all live for
value x 16^place units and then move to the exchange of the next lower place.  Behind the last place the exchange
``bk.delay.out`` hands the message to the queue of its target, ``bk.due.…``, which passes it on at once.

All messages of one queue live equally long, so they leave in the order in which they came and none blocks another.
Each target has a last queue of its own because the broker's worker that moves messages of a quorum queue stops
when 32 of them cannot be delivered: a target that is gone then blocks only itself.  What nothing is bound for goes
to ``bk.delay.lost``; its depth should be watched.

Quorum queues of RabbitMQ 4.0 to 4.2 are two queues in one, and look for what is due at the head of the one for
priorities above 4: a message there that is not due holds up those in the other that are.  On these versions the high
priorities have levels of their own, whose digits are the letters from g (1) to u (15).
"""

from __future__ import annotations

import hashlib
import math
import re
from dataclasses import dataclass
from typing import Any

from brokerkit_rabbitmq.names import DELIVERY_LIMIT, Exchange, Queue

__all__ = ["LONGEST", "LOST", "OUT", "RADIX", "UNIT", "Binding", "Target", "Wheel", "digits_of"]

#: Seconds.
UNIT = 0.1
RADIX = 16
#: How digits are written: those of a delay, and from `RADIX` on the same ones of the levels for high priorities.
_DIGITS = "0123456789abcdef-ghijklmnopqrstu"
#: The highest of the low priorities of a quorum queue before 4.3 (rabbit_fifo.erl).
_LOW_PRIORITY = 4
PLACES = 8
#: Seconds; message-ttl of RabbitMQ is at most ten years.
LONGEST = 315_360_000.0

OUT = "bk.delay.out"
LOST = "bk.delay.lost"
_ALTERNATE = {"alternate-exchange": LOST}
#: Characters that mean something in a key of a topic exchange, and the one that escapes them.
_SPECIAL = re.compile(r"[.*#~%]")
#: Bytes of the longest name that is written as it is; longer ones are replaced by their digest.
_LONGEST_NAME = 200


@dataclass(frozen=True, slots=True)
class Binding:
    """``destination``, a queue or with ``to_exchange`` an exchange, gets what matches ``key`` in ``source``."""

    source: str
    destination: str
    key: str
    to_exchange: bool = False


@dataclass(frozen=True, slots=True)
class Target:
    """Where a message goes when it is due: to an exchange with the keys it was sent with, or to one queue."""

    exchange: str
    #: The queue; None: the exchange decides.
    queue: str | None = None

    @property
    def name(self) -> str:
        """The word that stands for the target in routing keys and in the name of its queue."""
        name = f"q.{self.queue}" if self.queue is not None else f"x.{self.exchange}"
        if len(name.encode()) <= _LONGEST_NAME:
            return name
        return f"{name[0]}.{hashlib.sha256(name.encode()).hexdigest()}"

    @property
    def word(self) -> str:
        """`name` as one word of a routing key."""
        word = _SPECIAL.sub(lambda match: f"%{ord(match[0]):02X}", self.name)
        # Eight digits of two characters, each with its dot, and a tilde come in front; a key has at most 255 bytes.
        if len(word.encode()) > 255 - 3 * PLACES - 1:
            word = f"{word[0]}%2E{hashlib.sha256(word.encode()).hexdigest()}"
        # No key of a sender holds a tilde, so none can take the way of a target.
        return f"~{word}"


def digits_of(delay: float, *, coarse: bool = False) -> tuple[int, ...]:
    """Return the digits of ``delay`` seconds, the highest place first; never less than the delay.

    With ``coarse`` all but the two highest digits become 0, rounded up: at most 1/16 more, and at most two queues on
    the way (but at `LONGEST`, which is not rounded).
    """
    units = max(1, math.ceil(min(delay, LONGEST) / UNIT - 1e-9))
    if coarse:
        step = RADIX ** max(0, _length(units) - 2)
        units = -(-units // step) * step
    units = min(units, int(LONGEST / UNIT))
    return tuple(units // RADIX**place % RADIX for place in range(PLACES - 1, -1, -1))


def _length(units: int) -> int:
    length = 0
    while units:
        units //= RADIX
        length += 1
    return length


class Wheel:
    """The names and arguments of the wheel; no I/O."""

    def __init__(self, queue_type: str) -> None:
        self._queue_type = queue_type
        #: Of the broker; set once it is known.
        self.version: tuple[int, ...] = (0,)

    def frame(self) -> tuple[list[Exchange], list[Queue], list[Binding]]:
        """Return what every delay needs: the exchanges, the queue of the lost, and the ways past the zeros."""
        exchanges = [Exchange(LOST, "fanout"), Exchange(OUT, arguments=_ALTERNATE)]
        bindings = [Binding(LOST, LOST, "")]
        for place in range(PLACES):
            exchanges.append(Exchange(_exchange(place), arguments=_ALTERNATE))
            bindings.append(Binding(_exchange(place), _exchange(place - 1), f"{_stars(place)}~0.#", to_exchange=True))
        return exchanges, [Queue(LOST, arguments=self._arguments({}))], bindings

    def step(self, place: int, digit: int) -> tuple[Queue, Binding]:
        """Return the queue for one value of one digit, and its binding."""
        queue = Queue(
            f"bk.delay.{place}.{_DIGITS[digit]}",
            arguments=self._arguments(
                {
                    "x-message-ttl": digit % RADIX * RADIX**place * round(UNIT * 1000),
                    "x-dead-letter-exchange": _exchange(place - 1),
                }
            ),
        )
        return queue, Binding(_exchange(place), queue.name, f"{_stars(place)}~{_DIGITS[digit]}.#")

    def due(self, target: Target) -> tuple[Queue, Binding]:
        """Return the queue that passes on what is due for ``target``, and its binding."""
        arguments: dict[str, Any] = {"x-message-ttl": 0, "x-dead-letter-exchange": target.exchange}
        if target.queue is not None:
            arguments["x-dead-letter-routing-key"] = target.queue
        queue = Queue(f"bk.due.{target.name}", arguments=self._arguments(arguments))
        return queue, Binding(OUT, queue.name, f"{'*.' * PLACES}{target.word}")

    def digits(self, delay: float, *, coarse: bool = False, priority: int = 0) -> tuple[int, ...]:
        """Return what `digits_of` does, or the digits of the levels for high priorities where the broker needs them."""
        digits = digits_of(delay, coarse=coarse)
        if priority <= _LOW_PRIORITY or self._queue_type != "quorum" or not (4, 0) <= self.version < (4, 3):
            return digits
        return tuple(digit and digit + RADIX for digit in digits)

    def entry(self, digits: tuple[int, ...], target: Target) -> tuple[str, str]:
        """Return exchange and routing key to send to: the exchange of the highest digit that is not 0."""
        place = PLACES - 1 - next(index for index, digit in enumerate(digits) if digit)
        return _exchange(place), ".".join([*(f"~{_DIGITS[digit]}" for digit in digits), target.word])

    def steps(self, digits: tuple[int, ...]) -> list[tuple[int, int]]:
        """Return (place, digit) of the queues on the way."""
        return [(PLACES - 1 - index, digit) for index, digit in enumerate(digits) if digit]

    def _arguments(self, arguments: dict[str, Any]) -> dict[str, Any]:
        if self._queue_type != "quorum":
            return {"x-queue-type": self._queue_type, **arguments}
        safe = {"x-dead-letter-strategy": "at-least-once"} if "x-dead-letter-exchange" in arguments else {}
        return {
            "x-queue-type": "quorum",
            "x-delivery-limit": DELIVERY_LIMIT,
            # At-least-once needs it; a message that is refused stays where it was.
            "x-overflow": "reject-publish",
            **safe,
            **arguments,
        }


def _exchange(place: int) -> str:
    return f"bk.delay.{place}" if place >= 0 else OUT


def _stars(place: int) -> str:
    return "*." * (PLACES - 1 - place)
