"""Which backends are installed, by name and by URL scheme.

A distribution offers a backend with an entry point in the group ``brokerkit.backends``.  Nothing of a backend is
imported before it is asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from importlib.metadata import EntryPoint, entry_points

from brokerkit.errors import ConfigurationError
from brokerkit.spi import Backend
from brokerkit.suggest import did_you_mean
from brokerkit.url import BrokerUrl

__all__ = ["BUILT_IN", "GROUP", "SCHEMES", "Registry", "backend_for_url", "find_backend", "known_backends"]

#: The entry point group that a backend's distribution declares.
GROUP = "brokerkit.backends"
#: The schemes of brokerkit's own backends, so that a URL can be understood without importing one.
SCHEMES = {
    "amqp": "rabbitmq",
    "amqps": "rabbitmq",
    "memory": "embedded",
    "rocketmq": "rocketmq",
    "sqlite": "embedded",
}
#: The names of brokerkit's own backends, installed or not.
BUILT_IN = tuple(sorted(set(SCHEMES.values())))


class Registry:
    """The backends that can be used: those of the installed distributions and those that were added.

    Entry points are read once, at the first question, and loaded one by one when a backend is asked for.
    """

    def __init__(self, points: Iterable[EntryPoint] | None = None) -> None:
        """Use ``points`` instead of the installed entry points when they are given."""
        self._given = None if points is None else tuple(points)
        self._points: dict[str, EntryPoint] | None = None
        self._added: dict[str, Backend | Callable[[], Backend]] = {}

    def add(self, name: str, backend: Backend | Callable[[], Backend]) -> None:
        """Make a backend known under ``name``, before any entry point of that name.

        A class, or another callable that is no backend itself, is called without arguments at each question.
        """
        self._added[name] = backend

    def known(self) -> tuple[str, ...]:
        """Return the names of the backends that are installed or were added, sorted.  Imports none."""
        return tuple(sorted({*self._entries(), *self._added}))

    def find(self, name: str) -> Backend:
        """Return the backend ``name``; raise `ConfigurationError` that says what to install or what was meant."""
        if not isinstance(name, str):
            raise ConfigurationError(f"the name of a backend must be a str, not {type(name).__name__}")
        added = self._added.get(name)
        if added is not None:
            # A class has all the attributes of its instances, so it would pass for a backend.
            ready = isinstance(added, Backend) and not isinstance(added, type)
            return _checked(name, added if ready else added())  # type: ignore[operator]
        point = self._entries().get(name)
        if point is not None:
            return _checked(name, _load(point))
        if name in BUILT_IN:
            raise ConfigurationError(f"backend {name!r} is not installed. {_install(name)}")
        installed = ", ".join(self.known()) or "none"
        hint = did_you_mean(name, {*self.known(), *BUILT_IN})
        raise ConfigurationError(f"unknown backend {name!r}{hint}; installed: {installed}")

    def name_for_url(self, url: str | BrokerUrl) -> str:
        """Return the name of the backend that serves the scheme of ``url``.

        Backends that were added come first, then brokerkit's own, then the other entry points, which are
        imported for it.  Raise `ConfigurationError` for a malformed URL or a scheme that nobody serves.
        """
        scheme = (url if isinstance(url, BrokerUrl) else BrokerUrl.parse(url)).scheme
        for name in self._added:
            if scheme in self.find(name).schemes:
                return name
        if scheme in SCHEMES:
            return SCHEMES[scheme]
        known = set(SCHEMES)
        for name in self._entries():
            if name in BUILT_IN:
                continue
            try:
                schemes = self.find(name).schemes
            except ConfigurationError:
                # A broken plug-in must not keep the others from working; asking for it by name tells what is wrong.
                continue
            if scheme in schemes:
                return name
            known.update(schemes)
        hint = did_you_mean(scheme, known)
        raise ConfigurationError(
            f"no installed backend serves URLs that begin with {scheme}://{hint}; known: {', '.join(sorted(known))}"
        )

    def for_url(self, url: str | BrokerUrl) -> Backend:
        """Return the backend that serves the scheme of ``url``; errors as `find` and `name_for_url`."""
        return self.find(self.name_for_url(url))

    def _entries(self) -> dict[str, EntryPoint]:
        if self._points is None:
            points = self._given if self._given is not None else entry_points(group=GROUP)
            self._points = {point.name: point for point in points}
        return self._points


def find_backend(name: str) -> Backend:
    """Return the installed backend ``name``; see `Registry.find`."""
    return Registry().find(name)


def backend_for_url(url: str) -> Backend:
    """Return the installed backend that serves the scheme of ``url``; see `Registry.for_url`."""
    return Registry().for_url(url)


def known_backends() -> tuple[str, ...]:
    """Return the names of the installed backends, sorted; imports none of them."""
    return Registry().known()


def _install(name: str) -> str:
    return f"Install it with: pip install 'brokerkit[{name}]'"


def _load(point: EntryPoint) -> object:
    cure = _install(point.name) if point.name in BUILT_IN else "Install the distribution again, or remove it"
    try:
        made: object = point.load()()
    except ImportError as exc:
        raise ConfigurationError(f"backend {point.name!r} cannot be imported: {exc}. {cure}") from exc
    except Exception as exc:
        raise ConfigurationError(f"backend {point.name!r} ({point.value}) cannot be made: {exc!r}. {cure}") from exc
    return made


def _checked(name: str, made: object) -> Backend:
    if isinstance(made, Backend):
        return made
    missing = [part for part in ("name", "schemes", "capabilities", "connect", "map_error") if not hasattr(made, part)]
    raise ConfigurationError(
        f"backend {name!r} is not a brokerkit.spi.Backend: {type(made).__name__} lacks {', '.join(missing)}"
    )
