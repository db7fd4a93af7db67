"""What a soak run needs to know of a kind of broker."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from brokerkit import AsyncManager
from brokerkit.testing.faults import FaultProxy

__all__ = ["End", "Line", "Stage", "joined"]

#: Ends a fault of the broker; with True whatever is down may stay down, as the run is over.
End = Callable[[bool], object]


@dataclass(frozen=True, slots=True)
class Line:
    """How one process reaches the broker."""

    url: str
    #: All links of the process go through these.
    proxies: Sequence[FaultProxy]


class Stage(Protocol):
    """A private broker, and the faults that only a broker of its kind has.  Methods without ``async`` block."""

    @property
    def label(self) -> str:
        """Return product and version."""
        ...

    @property
    def url(self) -> str:
        """Return what the run itself connects to."""
        ...

    @property
    def settings(self) -> Mapping[str, Any]:
        """Return what the settings of all processes have besides the URL."""
        ...

    @property
    def weights(self) -> Mapping[str, int]:
        """Return its own kinds of faults, and how often each is drawn, as in `faults.WEIGHTS`."""
        ...

    @property
    def restarts(self) -> frozenset[str]:
        """Return the kinds after which the broker has to come up again; these do not follow each other closely."""
        ...

    def start(self) -> None:
        """Start the broker."""
        ...

    def close(self) -> None:
        """End the broker and delete its data."""
        ...

    def line(self) -> AbstractContextManager[Line]:
        """Return the way of one more process to the broker."""
        ...

    def declared(self) -> None:
        """Return when a broker that is killed now keeps what was declared."""
        ...

    async def waiting(self, manager: AsyncManager) -> Sequence[str]:
        """Return a text about each queue that is not empty, delayed messages included, dead letters not."""
        ...

    def strike(self, kind: str, detail: float) -> End | None:
        """Begin a fault, whose details ``detail`` decides, from 0 to 1; return how to end it, None when it is over."""
        ...

    def keep_logs(self, folder: Path) -> None:
        """Copy the logs of the broker there."""
        ...


@contextmanager
def joined(url: str, proxy: FaultProxy) -> Iterator[Line]:
    """Let one proxy be the line to a broker that has one address."""
    with proxy:
        yield Line(proxy.url_for(url), (proxy,))
