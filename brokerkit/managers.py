"""`get_manager`, `get_async_manager` and `initialize`: the managers of a process, by name."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Coroutine, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from brokerkit.errors import ConfigurationError
from brokerkit.export_manager import ExportManager
from brokerkit.manager import AsyncManager
from brokerkit.settings import Settings, load_settings
from brokerkit.settings_sources import CONFIG_VARIABLE

if TYPE_CHECKING:
    Given = Settings | Mapping[str, Any] | str | os.PathLike[str] | None

__all__ = ["get_async_manager", "get_manager", "initialize"]


def get_manager(name: str = "default") -> ExportManager:
    """Return the manager that is kept under ``name``, making it from the configuration on the first call.

    ``default`` is what the top level of the configuration describes, any other name an entry below ``managers:``.
    No I/O: the configuration is read, and a name that it does not know is refused, on the manager's first use.
    """
    return _KEPT.blocking(name)


def get_async_manager(name: str = "default") -> AsyncManager:
    """Return the `AsyncManager` that is kept under ``name``, with the settings of `get_manager`.

    It is a manager of its own with its own connection, for the one event loop of the application; the metrics of
    the two are counted apart.
    """
    return _KEPT.asynchronous(name)


def initialize(
    settings: Settings | Mapping[str, Any] | str | os.PathLike[str] | None = None, name: str = "default"
) -> ExportManager:
    """Keep a new manager under ``name`` and close the one that was kept there; return the new one.

    settings: a `Settings`; a mapping, which counts as arguments on top of the configuration; the path of a YAML
              file, read in place of ``brokerkit.yaml``; or None, for the configuration as `get_manager` finds it

    The settings are read at once: what is wrong is a `ConfigurationError`, and the old manager stays.  Nothing
    connects.  An `AsyncManager` that was kept under the name is closed by its own event loop, soon after.
    """
    return _KEPT.replace(settings, name)


@dataclass(slots=True)
class _Entry:
    settings: Settings | None = None
    blocking: ExportManager | None = None
    asynchronous: AsyncManager | None = None


class _Kept:
    """The managers that the application asked to keep; for any number of threads."""

    def __init__(self) -> None:
        self._entries: dict[str, _Entry] = {}
        # By process id: a lock that another thread held during a fork stays locked in the child for ever.
        self._locks: dict[int, threading.Lock] = {}

    def blocking(self, name: str) -> ExportManager:
        with self._lock():
            entry = self._entry(name)
            if entry.blocking is None:
                entry.blocking = ExportManager(settings=entry.settings, name=name)
            return entry.blocking

    def asynchronous(self, name: str) -> AsyncManager:
        with self._lock():
            entry = self._entry(name)
            if entry.asynchronous is None:
                entry.asynchronous = AsyncManager(settings=entry.settings, name=name)
            return entry.asynchronous

    def replace(self, given: Given, name: str) -> ExportManager:
        settings = _read(given, name)
        manager = ExportManager(settings=settings, name=name)
        with self._lock():
            old = self._entries.get(name)
            if old is not None and old.blocking is not None:
                # On the event loop of the old manager nothing could be closed: refused while nothing is changed.
                old.blocking._gate.refuse_inside()
            self._entries[name] = _Entry(settings, manager)
        if old is not None:
            if old.asynchronous is not None:
                _close_on_its_loop(old.asynchronous)
            if old.blocking is not None:
                old.blocking.close()
        return manager

    def _entry(self, name: str) -> _Entry:
        if not isinstance(name, str):
            raise ConfigurationError(f"the name of a manager is a str, not {type(name).__name__}")
        return self._entries.setdefault(name, _Entry())

    def _lock(self) -> threading.Lock:
        return self._locks.setdefault(os.getpid(), threading.Lock())


def _read(given: Given, name: str) -> Settings:
    if given is None or isinstance(given, Settings | Mapping):
        return load_settings(settings=given, name=name)
    if not isinstance(given, str | os.PathLike):
        raise ConfigurationError(
            f"initialize takes a Settings, a mapping or the path of a YAML file, not {type(given).__name__}"
        )
    return load_settings(name=name, env={**os.environ, CONFIG_VARIABLE: os.fspath(given)})


def _close_on_its_loop(manager: AsyncManager) -> None:
    session = manager._session
    if session is None or session.is_gone:
        manager._detach()
        return
    closing: Coroutine[Any, Any, None] = manager.aclose()
    try:
        asyncio.run_coroutine_threadsafe(closing, session.loop)
    except RuntimeError:  # the loop was closed this moment
        closing.close()


#: The one thing that brokerkit keeps by itself.
_KEPT = _Kept()
