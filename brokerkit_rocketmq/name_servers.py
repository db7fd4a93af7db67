"""`NameServers`: the list of NameServers, any of which answers."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from brokerkit.errors import BrokerError, BrokerUnavailable
from brokerkit.spi import Clock, wait
from brokerkit_rocketmq.addresses import Address
from brokerkit_rocketmq.errors import NAME, unreachable
from brokerkit_rocketmq.links import Link, Links, Probe
from brokerkit_rocketmq.remoting.codes import RequestCode, ResponseCode
from brokerkit_rocketmq.remoting.errors import RemotingError
from brokerkit_rocketmq.remoting.frames import Frame

__all__ = ["NAME_SERVER_PROBE", "NameServers"]

#: Any NameServer answers it, with the route or with 17.
NAME_SERVER_PROBE = Probe(RequestCode.GET_ROUTEINFO_BY_TOPIC, {"topic": "TBW102"})


@dataclass(frozen=True, slots=True)
class _Place:
    """One IP address of one configured NameServer."""

    address: str
    server_name: str


class NameServers:
    """Asks one NameServer, and the next one when it does not answer.

    A host name is looked up whenever another NameServer is needed; each of its addresses is a NameServer.
    """

    def __init__(self, addresses: Sequence[Address], links: Links, clock: Clock) -> None:
        """``links`` are closed by `aclose`."""
        self.addresses = tuple(addresses)
        self._links = links
        self._clock = clock
        #: The one that answered last, and whether it did so when it was asked last.
        self._current: Link | None = None
        self._trusted = False
        #: Addresses at the last look-up.
        self._count = len(self.addresses)

    async def call(
        self,
        code: int,
        fields: Mapping[str, str] | None = None,
        body: bytes = b"",
        *,
        timeout: float,
        satisfied: Callable[[Frame], bool] | None = None,
    ) -> Frame:
        """Return the answer of the first NameServer that gives one within ``timeout`` seconds for all of them.

        With ``satisfied`` the others are asked too while it returns False; the first answer is returned when none
        satisfies.  Raise `BrokerUnavailable` with what became of each, `AccessRefused`, or `Closed`.
        """
        deadline = self._clock.monotonic() + timeout
        failures: list[BrokerError] = []
        unsatisfying: Frame | None = None
        asked: Link | None = None
        link = self._current
        if link is not None and link.is_up and self._trusted:
            asked = link
            # All of the time when there is no other.
            frame = await self._ask(link, code, fields, body, timeout / self._count, failures)
            if frame is None:
                self._trusted = False
            elif satisfied is None or satisfied(frame):
                return frame
            unsatisfying = frame
        left = [link for link in map(self._link, await self._places(deadline, failures)) if link is not asked]
        left.sort(key=_is_down)
        for number, link in enumerate(left):
            share = (deadline - self._clock.monotonic()) / (len(left) - number)
            if share <= 0:
                break
            if unsatisfying is not None and _is_down(link):
                # Not worth waiting for when there is an answer; the next question may find it up.
                link.dial()
                continue
            frame = await self._ask(link, code, fields, body, share, failures)
            if frame is None:
                continue
            if satisfied is None or satisfied(frame):
                self._current, self._trusted = link, True
                return frame
            unsatisfying = unsatisfying or frame
        if unsatisfying is not None:
            return unsatisfying
        raise _all_failed(failures, timeout)

    async def call_each(
        self, code: int, fields: Mapping[str, str] | None = None, body: bytes = b"", *, timeout: float
    ) -> list[Frame]:
        """Return the answers of all NameServers that give one; they share nothing, each keeps its own records.

        Raise `BrokerUnavailable` when none does within ``timeout`` seconds.
        """
        outcomes = (await self.outcomes(code, fields, body, timeout=timeout)).values()
        frames = [outcome for outcome in outcomes if isinstance(outcome, Frame)]
        if not frames:
            raise _all_failed([outcome for outcome in outcomes if isinstance(outcome, BrokerError)], timeout)
        return frames

    async def outcomes(
        self, code: int, fields: Mapping[str, str] | None = None, body: bytes = b"", *, timeout: float
    ) -> dict[str, Frame | BrokerError]:
        """Return by address what each NameServer answered within ``timeout`` seconds, or why it did not.

        A host name that cannot be looked up has its own place in the answer.
        """
        deadline = self._clock.monotonic() + timeout
        outcomes: dict[str, Frame | BrokerError] = {}
        places: dict[_Place, None] = {}
        for address in self.addresses:
            try:
                places.update(dict.fromkeys(await self._places_of(address, deadline)))
            except BrokerError as error:
                outcomes[str(address)] = error

        async def ask(place: _Place) -> None:
            failures: list[BrokerError] = []
            frame = await self._ask(self._link(place), code, fields, body, timeout, failures)
            outcomes[place.address] = failures[0] if frame is None else frame

        await asyncio.gather(*map(ask, places))
        return outcomes

    async def _ask(
        self,
        link: Link,
        code: int,
        fields: Mapping[str, str] | None,
        body: bytes,
        timeout: float,
        failures: list[BrokerError],
    ) -> Frame | None:
        try:
            frame = await link.call(code, fields, body, timeout=timeout)
        except RemotingError as exc:
            failures.append(unreachable(exc, link.address))
            return None
        if frame.code == ResponseCode.GO_AWAY:
            failures.append(BrokerUnavailable(f"the NameServer {link.address} is shutting down", backend=NAME))
            return None
        return frame

    def _link(self, place: _Place) -> Link:
        return self._links.get(place.address, server_name=place.server_name)

    async def _places(self, deadline: float, failures: list[BrokerError]) -> list[_Place]:
        """Return all addresses in the order of the configuration, but those after the last one used first."""
        places: dict[_Place, None] = {}
        for address in self.addresses:
            try:
                places.update(dict.fromkeys(await self._places_of(address, deadline)))
            except BrokerError as error:
                failures.append(error)
        ordered = list(places)
        self._count = max(len(ordered), 1)
        current = self._current
        for index, place in enumerate(ordered):
            if current is not None and place.address == current.address:
                return ordered[index + 1 :] + ordered[: index + 1]
        return ordered

    async def _places_of(self, address: Address, deadline: float) -> list[_Place]:
        """Return what a configured address stands for; raise `BrokerError` when its name cannot be looked up."""
        if _is_ip(address.host):
            return [_Place(str(address), address.host)]
        looking = asyncio.get_running_loop().create_task(_look_up(address))
        try:
            if not await wait(self._clock, looking, max(deadline - self._clock.monotonic(), 0.001)):
                raise BrokerUnavailable(f"looking up {address.host} took too long", backend=NAME)
            return [_Place(str(Address(host, address.port)), address.host) for host in looking.result()]
        except (OSError, UnicodeError) as exc:
            raise unreachable(exc, str(address)) from exc
        finally:
            looking.cancel()
            # Its outcome is not of interest any more, whatever it is.
            looking.add_done_callback(_forget)

    async def aclose(self) -> None:
        """Close all links.  Idempotent."""
        await self._links.aclose()


def _is_down(link: Link) -> bool:
    return link.error is not None and not link.is_up


async def _look_up(address: Address) -> list[str]:
    found = await asyncio.get_running_loop().getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
    return [str(info[4][0]) for info in found]


def _forget(task: asyncio.Task[list[str]]) -> None:
    if not task.cancelled():
        task.exception()


def _is_ip(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _all_failed(failures: Sequence[BrokerError], timeout: float) -> BrokerError:
    if not failures:
        return BrokerUnavailable(f"no NameServer answered in {timeout:g} s", backend=NAME)
    texts = "; ".join(dict.fromkeys(error.message for error in failures))
    error = BrokerUnavailable(texts, backend=NAME, retryable=any(error.retryable for error in failures))
    error.__cause__ = failures[0].__cause__
    return error
