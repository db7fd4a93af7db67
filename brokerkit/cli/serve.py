"""One worker process: load the application, run its handlers, tell the supervisor and the state file.

``python -m brokerkit.cli.serve ORDER`` is how the supervisor starts one; without a supervisor the command
``worker`` calls `serve` itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from types import FrameType

from brokerkit.blocking import Manager
from brokerkit.cli.beat import Beat
from brokerkit.cli.patience import Patience
from brokerkit.cli.targets import AnyManager, files_below, load_manager, project_files
from brokerkit.clock import SystemClock
from brokerkit.errors import BrokerError, ConfigurationError
from brokerkit.settings import Settings
from brokerkit.state_files import StateFile
from brokerkit.suggest import did_you_mean
from brokerkit.url import BrokerUrl

__all__ = ["Order", "broker_of", "main", "say", "serve"]

#: Seconds beyond the stop timeout after which a process whose supervisor is gone ends itself, whatever happens.
_GRACE = 12.0
#: What shells add to the number of a signal.
_BY_SIGNAL = 128


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What one worker process is asked to do."""

    targets: Sequence[str]
    worker_id: str
    #: Nobody chose the id: it is made of the pid.
    unnamed: bool = False
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
        clock = SystemClock()

        def on_look(running: bool) -> None:
            if reports.wanted:
                reports.send(files=project_files(), **({"ran": True} if running else {}))

        def on_first() -> None:
            if beat.in_flight and order.lifeline is None:
                say(
                    f"stopping: {beat.in_flight} in work, which may take {settings.stop_timeout:g} s; "
                    f"once more stops without waiting"
                )

        def on_forced() -> None:
            say(
                "ended by force: a handler holds up the event loop, or ignores its cancellation; "
                "what was in work goes back"
            )
            with contextlib.suppress(OSError):
                file.remove()

        beat = Beat(
            manager,
            file,
            worker_id=order.worker_id,
            unnamed=order.unnamed,
            target=" ".join(order.targets),
            broker=broker,
            clock=clock,
            on_look=on_look,
        )
        patience = Patience(settings.stop_timeout, clock, on_first=on_first, on_second=beat.hurry, on_forced=on_forced)
        with _signals(file), patience, beat:
            if isinstance(manager, Manager):
                manager.run()
            else:
                asyncio.run(manager.run())
        return 0
    except BrokerError as error:
        say(str(error))
        return 2 if isinstance(error, ConfigurationError) else 1
    except OSError as error:
        say(f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}")
        return 1
    except KeyboardInterrupt:
        return 130


@contextlib.contextmanager
def _signals(file: StateFile) -> Iterator[None]:
    """Leave at once while the manager does not listen yet, or not any more; take a closed terminal for SIGTERM.

    Under ``nohup``, which ignores it, a closed terminal is to be survived.
    """

    def leave(number: int, frame: object) -> None:
        # Nothing is open and nothing in work.  An exception might leave a half-started thread that nobody ends.
        with contextlib.suppress(OSError):
            file.remove()
        os._exit(_BY_SIGNAL + number)

    handlers: dict[signal.Signals, Callable[[int, FrameType | None], object]] = {
        signal.SIGINT: leave,
        signal.SIGTERM: leave,
    }
    if signal.getsignal(signal.SIGHUP) is signal.SIG_DFL:
        handlers[signal.SIGHUP] = lambda number, frame: os.kill(os.getpid(), signal.SIGTERM)
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


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
    say(f"worker {order.worker_id} (pid {os.getpid()}) on {broker}: {handlers}{hint}")


def say(line: str) -> None:
    """Tell the person at the terminal; one that is gone is no reason to fail."""
    with contextlib.suppress(OSError, ValueError):
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
        say("the supervisor is gone: stopping")
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
