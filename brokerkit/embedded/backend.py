"""The embedded backend: what the entry point names."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from brokerkit.embedded.connection import EmbeddedConnection
from brokerkit.embedded.memory import MemoryStore
from brokerkit.embedded.settings import EmbeddedSettings, parse_settings
from brokerkit.embedded.store import Store
from brokerkit.embedded.url import Location, parse_url
from brokerkit.errors import BrokerError
from brokerkit.spi import Capability, ConnectOptions

__all__ = ["EmbeddedBackend"]


class EmbeddedBackend:
    """A broker without a server: on an SQLite file or in memory.

    A subclass may offer less (`capabilities`, `offers`), use another store (`make_store`) or other drivers
    (`connection_class`).
    """

    name = "embedded"
    schemes: tuple[str, ...] = ("sqlite", "memory")
    capabilities: frozenset[Capability] = frozenset(Capability)
    settings_model: ClassVar[type[EmbeddedSettings]] = EmbeddedSettings
    connection_class: ClassVar[type[EmbeddedConnection]] = EmbeddedConnection

    async def connect(self, options: ConnectOptions) -> EmbeddedConnection:
        """Open the store that ``options`` name.

        Raise `ConfigurationError` for a malformed URL or section, and what is wrong with the file.
        """
        location = parse_url(options.url)
        settings = parse_settings(options.section, location.query)
        store = self.make_store(location, settings, options)
        await store.open()
        return self.connection_class(store, settings, options, lambda topic: self.offers(store, topic))

    def make_store(self, location: Location, settings: EmbeddedSettings, options: ConnectOptions) -> Store:
        """Return the store at ``location``, not opened yet."""
        clock = options.clock
        if location.memory is not None:
            if location.memory:
                return MemoryStore.named(location.memory, settings, clock)
            return MemoryStore(settings, clock)
        # Here, because a program that stays in memory needs no SQLite.
        from brokerkit.embedded.sqlite import SqliteStore

        path = Path(location.path or settings.path)
        return SqliteStore(path, settings=settings, clock=clock, attempt_timeout=options.attempt_timeout)

    def offers(self, store: Store, topic: str) -> frozenset[Capability]:
        """Return what a connection to ``store`` offers for ``topic``."""
        if store.persistent:
            return self.capabilities
        return self.capabilities - {Capability.DURABLE, Capability.MULTIPROCESS}

    def map_error(self, exc: BaseException) -> BrokerError | None:
        """Translate an error of SQLite."""
        import sqlite3

        if not isinstance(exc, sqlite3.Error):
            return None
        from brokerkit.embedded.sqlite_errors import map_sqlite_error

        return map_sqlite_error(exc, Path("the SQLite file"))
