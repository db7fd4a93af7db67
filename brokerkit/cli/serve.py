"""One worker process: load the application, run its handlers, tell the supervisor and the state file.

``python -m brokerkit.cli.serve ORDER`` is how the supervisor starts one; without a supervisor the command
``worker`` calls `serve` itself.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import sys
import threading
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

from brokerkit.blocking import Manager
from brokerkit.cli.beat import Beat
from brokerkit.cli.targets import AnyManager, files_below, load_manager, project_files
from brokerkit.clock import SystemClock
from brokerkit.errors import BrokerError, ConfigurationError
from brokerkit.settings import Settings
from brokerkit.state_files import StateFile
from brokerkit.suggest import did_you_mean
from brokerkit.url import BrokerUrl

__all__ = ["Order", "broker_of", "main", "serve"]

#: Seconds beyond the stop timeout after which a process whose supervisor is gone ends itself.
_GRACE = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What one worker process is asked to do."""

    targets: Sequence[str]
    worker_id: str
    manager: str | None = None
    only: Sequence[str] = ()
    concurrency: int | None = None
    #: Descriptor that ends with the supervisor, and the one that it reads; None without a supervisor.
    lifeline: int | None = None
    reports: int | None = None

    def to_json(self) -> str:
        """Return it as one argument of a command line."""
        return json.dumps(asdict(self))


def main() -> None:
    """Do what the first argument orders."""
    order = Order(**json.loads(sys.argv[1]))
    sys.argv[1:] = []
    sys.exit(serve(order))


def serve(order: Order) -> int:
    """Run the handlers until a signal; return the exit code: 0, 1 failed, 2 cannot work as configured."""
    lifeline = _Lifeline(order.lifeline)
    reports = _Reports(order.reports)
    try:
        loaded = False
        try:
            manager = load_manager(order.targets, order.manager)
            _choose(manager, order)
            file = StateFile(order.worker_id)
            holder = file.holder()
            if holder is not None:
                raise ConfigurationError(
                    f"a worker with the id {order.worker_id!r} runs already on this host (pid {holder.pid}, "
                    f"{holder.target}); give another --id"
                )
            settings = manager.settings
            broker = broker_of(settings)
            loaded = True
        finally:
            if not loaded:
                # A change of these files is what a reload waits for.
                reports.send(files=files_below())
        lifeline.patience = settings.stop_timeout + _GRACE
        reports.send(loaded=True, stop_timeout=settings.stop_timeout, files=project_files())
        _prepare_logging()
        _greet(manager, order, broker)

        def on_stop(in_flight: int) -> None:
            if in_flight and order.lifeline is None:
                _say(
                    f"stopping: {in_flight} in work, which may take {settings.stop_timeout:g} s; "
                    f"once more stops without waiting"
                )

        with Beat(
            manager,
            file,
            worker_id=order.worker_id,
            target=" ".join(order.targets),
            broker=broker,
            clock=SystemClock(),
            on_look=lambda: reports.send(files=project_files()) if reports.wanted else None,
            on_stop=on_stop,
        ):
            if isinstance(manager, Manager):
                manager.run()
            else:
                asyncio.run(manager.run())
        return 0
    except BrokerError as error:
        _say(str(error))
        return 2 if isinstance(error, ConfigurationError) else 1
    except KeyboardInterrupt:
        return 130


def broker_of(settings: Settings) -> str:
    """Return the broker for people and for comparing, without credentials."""
    path = settings.embedded_path()
    if path is not None:
        return f"sqlite:///{path}"
    return str(BrokerUrl.parse(settings.url)) if settings.url is not None else settings.backend_name


# --- choosing ---------------------------------------------------------------------------------------------------------


def _choose(manager: AnyManager, order: Order) -> None:
    """Leave the handlers that are asked for, with the concurrency that is asked for."""
    topics = sorted({spec.topic for spec in manager.specs})
    if not topics:
        raise ConfigurationError(
            f"{order.targets[0]} has no handlers. Write @manager.handler(topic) above a function, and name the modules "
            f"with further handlers too: brokerkit worker {order.targets[0]} OTHER_MODULE"
        )
    for topic in order.only:
        if topic not in topics:
            hint = did_you_mean(topic, topics)
            raise ConfigurationError(f"--only {topic}: no handler of that topic{hint}; topics: {', '.join(topics)}")
    # Read with all handlers: a handler that is left out here still says which groups its topic has.
    _ = manager.topology
    manager.specs[:] = [
        spec if order.concurrency is None else replace(spec, concurrency=order.concurrency)
        for spec in manager.specs
        if not order.only or spec.topic in order.only
    ]


# --- talking ----------------------------------------------------------------------------------------------------------


def _prepare_logging() -> None:
    if not logging.getLogger().handlers:
        logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")


def _greet(manager: AnyManager, order: Order, broker: str) -> None:
    handlers = ", ".join(sorted({f"{spec.topic} ({spec.name})" for spec in manager.specs}))
    hint = "" if order.lifeline is not None else "; Ctrl-C stops"
    _say(f"worker {order.worker_id} (pid {os.getpid()}) on {broker}: {handlers}{hint}")


def _say(line: str) -> None:
    # One write, as other processes write to the same terminal.
    sys.stderr.write(f"brokerkit: {line}\n")
    sys.stderr.flush()


# --- the supervisor ---------------------------------------------------------------------------------------------------


class _Lifeline:
    """Stops this process, with a drain, when its supervisor is gone."""

    def __init__(self, descriptor: int | None) -> None:
        self.patience = _GRACE
        if descriptor is not None:
            os.set_inheritable(descriptor, False)
            threading.Thread(target=self._watch, args=(descriptor,), name="brokerkit-lifeline", daemon=True).start()

    def _watch(self, descriptor: int) -> None:
        # Nobody writes to it: it only ever ends.
        os.read(descriptor, 1)
        _say("the supervisor is gone: stopping")
        os.kill(os.getpid(), signal.SIGTERM)
        threading.Event().wait(self.patience)
        os._exit(1)


class _Reports:
    """Tells the supervisor what this process is made of; says the same thing once only."""

    def __init__(self, descriptor: int | None) -> None:
        self._descriptor = descriptor
        self._last: dict[str, object] = {}
        if descriptor is not None:
            os.set_inheritable(descriptor, False)

    @property
    def wanted(self) -> bool:
        """Whether there is a supervisor."""
        return self._descriptor is not None

    def send(self, **report: object) -> None:
        """Send what is new; a supervisor that is gone is the lifeline's business."""
        if self._descriptor is None or all(self._last.get(key, self) == value for key, value in report.items()):
            return
        self._last.update(report)
        try:
            os.write(self._descriptor, json.dumps(self._last).encode() + b"\n")
        except OSError:
            self._descriptor = None


if __name__ == "__main__":
    main()
