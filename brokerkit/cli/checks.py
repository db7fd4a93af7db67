"""What ``brokerkit doctor`` looks at, without printing: each check gives findings with what to do."""

from __future__ import annotations

import ctypes
import os
import shutil
import sqlite3
import sys
from collections.abc import Iterator
from pathlib import Path

from brokerkit.blocking import Manager
from brokerkit.cli.serve import broker_of
from brokerkit.cli.targets import AnyManager
from brokerkit.clock import Clock
from brokerkit.embedded.integrity import find_damage
from brokerkit.embedded.location import check_location
from brokerkit.embedded.settings import parse_settings
from brokerkit.embedded.url import parse_url
from brokerkit.errors import AccessRefused, BrokerError, TopicNotFound
from brokerkit.registry import Registry
from brokerkit.router import HandlerSpec
from brokerkit.settings import Settings
from brokerkit.settings_sources import CONFIG_VARIABLE, PREFIX, config_file, dotenv_variables
from brokerkit.spi import Capability, Finding
from brokerkit.state_files import WorkerState

__all__ = [
    "Finding",
    "application_findings",
    "broker_findings",
    "clock_findings",
    "configuration_findings",
    "source_of_settings",
    "worker_findings",
]

#: Seconds of an answer that is slow for a broker nearby.
_SLOW = 0.5
#: Bytes on the disk below which the embedded broker is about to refuse messages.
_DISK_LOW = 200 << 20
#: Seconds that RabbitMQ (consumer_timeout) and RocketMQ (consumeTimeout) let a delivery be unsettled by default.
_DELIVERY_LIMITS = {"rabbitmq": 1800.0, "rocketmq": 900.0}
#: Seconds at work after which a handler without a timeout is suspicious.
_LONG = 600.0
#: What findings about the embedded broker's file are about.
_FILE = "broker file"
#: A topic that nobody has.
_PROBE = "brokerkit-doctor"
#: What adjtimex(2) returns when no time service keeps the clock.
_TIME_ERROR = 5


def _ok(about: str, text: str) -> Finding:
    return Finding(level="ok", about=about, text=text)


def _advice(about: str, text: str, cure: str) -> Finding:
    return Finding(level="advice", about=about, text=text, cure=cure)


def _wrong(about: str, text: str, cure: str) -> Finding:
    return Finding(level="wrong", about=about, text=text, cure=cure)


# --- configuration ----------------------------------------------------------------------------------------------------


def source_of_settings() -> str:
    """Return which file and which variables say something; raise `ConfigurationError` for an unreadable .env."""
    here = Path.cwd()
    dotenv = dotenv_variables(here / ".env")
    path, _ = config_file({**dotenv, **os.environ}, here)
    parts = [str(path)] if path.is_file() else []
    for label, variables in (("the environment", os.environ), (str(here / ".env"), dotenv)):
        # Names only: a value may hold a password.
        names = sorted(name for name in variables if name.startswith(PREFIX) and name != CONFIG_VARIABLE)
        parts += [f"{', '.join(names)} of {label}"] if names else []
    return "; ".join(parts) or "no file and no variable: defaults"


def configuration_findings(settings: Settings, source: str) -> Iterator[Finding]:
    """Yield what can be said without a connection."""
    about = "configuration"
    yield _ok(about, f"{source}. Broker: {broker_of(settings)}")
    if settings.nothing_configured:
        yield _advice(
            about,
            f"no broker is configured, so messages go to {settings.embedded_path()}",
            "set BROKERKIT_URL, or url: in brokerkit.yaml, so that all programs use the same one",
        )
    if not settings.enabled:
        yield _wrong(about, "the backend's section says enabled: false: every call is refused", "remove that line")
    if settings.backend_name == "embedded" and settings.embedded_path() is None:
        yield _wrong(
            about,
            "a memory broker lives inside one process: a restart loses its messages, other programs do not see them",
            "in production use a file (url: sqlite:///work.db) or a server; memory:// is for tests",
        )
    for name, retry in (("", settings.retry), *((f"topics.{key}.", one.retry) for key, one in settings.topics.items())):
        if retry.exhausted == "requeue":
            yield _advice(
                about,
                f"{name}retry.exhausted is requeue: a message that always fails is tried for ever",
                "use exhausted: dead, and look at the dead letters",
            )
    if settings.idempotency.store == "memory":
        yield _advice(
            about,
            "idempotency.store is memory: what was done is forgotten with the process, and not shared with others",
            "use store: sqlite",
        )


# --- the broker -------------------------------------------------------------------------------------------------------


def broker_findings(manager: Manager, clock: Clock) -> Iterator[Finding]:
    """Connect, and yield what the broker says; nothing is created, neither a file nor a topic."""
    settings = manager.settings
    path = settings.embedded_path()
    if path is not None:
        found = list(_file_findings(settings, path))
        yield from found
        if any(one.level == "wrong" and one.about == _FILE for one in found) or not path.exists():
            return
    began = clock.monotonic()
    try:
        manager.connect()
    except BrokerError as error:
        server = "is it running, is the address right, do the credentials fit?"
        yield _wrong("broker", str(error), server if path is None else "until then nothing can be sent or handled")
        return
    connected = clock.monotonic() - began
    health = manager.monitor.health()
    if health.latency is None:
        yield _wrong("broker", "; ".join(health.problems), "look at the broker's own log")
        return
    text = f"{manager.backend_name} answers in {health.latency * 1000:.1f} ms (connected in {connected * 1000:.0f} ms)"
    if health.latency > _SLOW:
        yield _advice("broker", text, "each send waits that long: move closer, or look at the broker's load")
    else:
        yield _ok("broker", text)
    try:
        # Something that the broker must do, not only be there for; and nothing is made.
        manager.admin.verify(_PROBE)
    except TopicNotFound:
        pass
    except BrokerError as error:
        yield _wrong("broker", f"it is there and does not work: {error}", "until then nothing can be sent or handled")
        return
    if path is not None:
        yield from _damage_findings(path)
    yield from _topic_findings(manager)
    yield from manager.admin.diagnose()
    yield _limits(manager)


def _file_findings(settings: Settings, path: Path) -> Iterator[Finding]:
    try:
        parse_settings(settings.backend_section(), parse_url(settings.url).query)
        check_location(path)
    except BrokerError as error:
        cure = "make it writable for this user" if isinstance(error, AccessRefused) else "correct it"
        yield _wrong(_FILE, str(error), f"{cure}, or name another file: url: sqlite:///FILE")
        return
    free = shutil.disk_usage(path.parent).free
    if free < _DISK_LOW:
        yield _wrong("disk", f"{free >> 20} MiB are left on the disk of {path}", "make room: a full disk refuses sends")
    size = f"{path.stat().st_size >> 10} KiB" if path.exists() else "not there yet, the first send makes it"
    yield _ok(_FILE, f"{path}: {size}; {free >> 30} GiB free")


def _damage_findings(path: Path) -> Iterator[Finding]:
    cure = "move it away, with its -wal file, and recover it: sqlite3 FILE .recover; or restore a backup"
    try:
        damage = find_damage(path)
    except (OSError, sqlite3.Error) as error:
        yield _advice(_FILE, f"{path} could not be checked: {error}", "ask again when nobody has it locked")
        return
    if damage is not None:
        yield _wrong(_FILE, f"{path} is damaged: {damage}", cure)


def _topic_findings(manager: Manager) -> Iterator[Finding]:
    probe = next(iter(manager.topology), _PROBE)
    offered = manager.capabilities(probe)
    missing = sorted(one.value for one in manager.backend.capabilities - offered)
    if missing:
        yield _advice(
            "capabilities",
            f"this connection does not offer {', '.join(missing)}, which {manager.backend_name} can",
            "docs/backends.md says what each needs: a version, a permission, a setting",
        )
    else:
        yield _ok("capabilities", f"{len(offered)} of {len(Capability)} are offered, all that the backend has")
    for name, spec in manager.topology.items():
        if name == _PROBE:
            continue
        chosen = manager.topology.settings(name)
        declares = chosen is None or chosen.declare == "auto"
        for group in spec.groups or (None,):
            what = f"{name} / {group}" if group else name
            try:
                manager.admin.verify(name, group)
                yield _ok("topics", f"{what} exists as declared")
            except TopicNotFound as error:
                if declares:
                    yield _ok("topics", f"{what} does not exist yet; its first use declares it")
                else:
                    yield _wrong("topics", str(error), "create it, or let brokerkit: declare: auto")
            except BrokerError as error:
                yield _wrong("topics", str(error), "make the declaration and the broker agree, or give permission")


def _limits(manager: Manager) -> Finding:
    settings = manager.settings
    own = settings.max_message_size
    section = settings.backend_section()
    model = getattr(Registry().find(manager.backend_name), "settings_model", None)
    field = model.model_fields.get("max_message_size") if model is not None else None
    limit = section.get("max_message_size", field.default if field is not None else None)
    if own is not None and isinstance(limit, int) and own > limit:
        return _wrong(
            "message size",
            f"max_message_size allows {own} bytes, {manager.backend_name} only {limit}",
            f"set max_message_size to at most {limit}, or raise {manager.backend_name}.max_message_size",
        )
    shown = f"{own if own is not None else limit} bytes" if (own, limit) != (None, None) else "what the broker allows"
    return _ok("message size", f"a body may have {shown}")


# --- the application --------------------------------------------------------------------------------------------------


def application_findings(manager: AnyManager) -> Iterator[Finding]:
    """Yield what the handlers of an application ask for that their broker or configuration does not give."""
    about = "handlers"
    settings = manager.settings
    blueprint = (manager.aio if isinstance(manager, Manager) else manager)._blueprint
    if not manager.specs:
        yield _wrong(about, "the application has no handlers", "write @manager.handler(topic) above a function")
    for registered in manager.specs:
        try:
            spec = blueprint.resolve(registered)
        except BrokerError as error:
            yield _wrong(about, f"{registered.name}: {error}", "the worker will not start like this")
            continue
        found = list(_handler_findings(spec, settings, manager))
        yield from found or [_ok(about, f"{spec.name} handles {spec.topic} / {spec.group}")]


def _handler_findings(spec: HandlerSpec, settings: Settings, manager: AnyManager) -> Iterator[Finding]:
    about, name = "handlers", spec.name
    blueprint = (manager.aio if isinstance(manager, Manager) else manager)._blueprint
    limit = _DELIVERY_LIMITS.get(manager.backend_name)
    if limit is not None and spec.timeout is not None and spec.timeout >= limit:
        yield _wrong(
            about,
            f"{name}: its timeout of {spec.timeout:g} s is beyond the {limit:g} s after which {manager.backend_name} "
            f"by default takes an unsettled delivery away and delivers it again",
            "shorten the timeout, or raise the broker's limit",
        )
    if spec.timeout is None:
        yield _advice(
            about,
            f"{name}: no timeout; a run that hangs keeps its place until the worker is restarted",
            "give timeout=, or handler_timeout: for all",
        )
    if spec.idempotent and settings.idempotency.store is None:
        yield _wrong(
            about,
            f"{name}: idempotent=True, and no store is configured",
            "idempotency: {store: sqlite} in brokerkit.yaml",
        )
    if spec.retry is not None and blueprint.retry_policy(spec.topic, spec.retry).exhausted == "requeue":
        yield _advice(
            about,
            f'{name}: exhausted="requeue": a message that always fails is tried for ever',
            'use exhausted="dead", and look at the dead letters',
        )


# --- this host --------------------------------------------------------------------------------------------------------


def clock_findings(clock: Clock) -> Iterator[Finding]:
    """Yield whether somebody keeps the clock of this host: delays and expiry count on it."""
    if sys.platform != "linux":
        return
    # struct timex is smaller than this everywhere; modes = 0 only reads.
    answer = ctypes.CDLL(None).adjtimex(ctypes.byref(ctypes.create_string_buffer(512)))
    if answer == _TIME_ERROR:
        yield _advice(
            "clock",
            "the system does not know its clock to be right: no time service keeps it",
            "run chrony or systemd-timesyncd on each host; delays and ttl are reckoned with this clock",
        )
    elif answer >= 0:
        yield _ok("clock", "kept by a time service")


def worker_findings(workers: list[WorkerState], clock: Clock) -> Iterator[Finding]:
    """Yield what the workers on this host say about themselves."""
    about, now = "workers", clock.time()
    if not workers:
        yield _ok(about, "none runs on this host with this broker")
    for worker in workers:
        what = f"{worker.id} (pid {worker.pid})"
        condition = worker.condition(now)
        if condition == "stale":
            yield _wrong(
                about,
                f"{what} is gone without having stopped; it was killed, or it crashed",
                f"look at its log, start it again: brokerkit worker {worker.target}"
                + ("" if worker.unnamed else f" --id {worker.id}"),
            )
            continue
        if condition == "silent":
            yield _wrong(
                about,
                f"{what} gave no sign for {now - worker.beat:.0f} s",
                "it is suspended, or the host is overloaded",
            )
        for name, seconds in worker.stuck.items():
            yield _wrong(
                about,
                f"{what}: handler {name} is stuck: {seconds:.0f} s over its timeout",
                'a thread cannot be ended: restart the worker, and use executor="process" for such work',
            )
        for name, seconds in worker.longest.items():
            if seconds > _LONG and name not in worker.stuck:
                yield _advice(
                    about,
                    f"{what}: handler {name} has been at work on one message for {seconds:.0f} s",
                    "if that is not expected: give it a timeout, restart the worker",
                )
        if condition == "running" and not worker.stuck:
            yield _ok(about, f"{what} runs, {worker.in_flight} messages in work")
