"""What all commands share: which broker they work on, and how their errors end."""

from __future__ import annotations

import functools
import inspect
import logging
import os
import sys
import typing
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Any, NoReturn, TypeVar

import typer

from brokerkit.blocking import Manager
from brokerkit.cli.output import print_json
from brokerkit.errors import BrokerError, CapabilityNotSupported, ConfigurationError, PayloadError
from brokerkit.export_manager import ExportManager
from brokerkit.settings_sources import CONFIG_VARIABLE

__all__ = ["FAILED", "WRONG", "Broker", "CommandFailed", "complain", "ending", "fail", "help_of", "on_broker"]

M = TypeVar("M", bound=Manager)

#: Exit codes: the work failed; the command or the configuration cannot work.
FAILED, WRONG = 1, 2
#: What shells make of an end by SIGINT.
_INTERRUPTED = 130

_URL = Annotated[
    str | None,
    typer.Option("--url", metavar="URL", help="The broker, e.g. sqlite:///work.db; wins over every configuration."),
]
_CONFIG = Annotated[
    str | None, typer.Option("--config", metavar="FILE", help="The configuration file, in place of brokerkit.yaml.")
]
_MANAGER = Annotated[
    str | None, typer.Option("--manager", metavar="NAME", help="A broker below managers: of the configuration.")
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Broker:
    """The choice that the options --url, --config and --manager make; given before or after the command."""

    url: str | None = None
    config: str | None = None
    name: str | None = None

    def over(self, outer: Broker | None) -> Broker:
        """Return this choice, completed by that of the options before the command."""
        if outer is None:
            return self
        return Broker(
            url=self.url if self.url is not None else outer.url,
            config=self.config if self.config is not None else outer.config,
            name=self.name if self.name is not None else outer.name,
        )

    def check(self) -> None:
        """Raise `ConfigurationError` for an empty option: a variable of the shell that is not set."""
        for option, given in (("--url", self.url), ("--config", self.config), ("--manager", self.name)):
            if given == "":
                raise ConfigurationError(f"{option} is empty; leave it out, or give it a value")

    def apply_config(self) -> None:
        """Make the file the one that this process and its children read."""
        if self.config is not None:
            os.environ[CONFIG_VARIABLE] = os.path.abspath(self.config)

    def manager(self) -> Manager:
        """Return a manager that is not connected yet."""
        return Manager(self.url, name=self.name or "default")

    def export_manager(self) -> ExportManager:
        """Return a manager of export tasks that is not connected yet."""
        return ExportManager(self.url, name=self.name or "default")

    @contextmanager
    def connected(self, *, reads: bool = False) -> Iterator[Manager]:
        """Connect a manager; what `connecting` says."""
        with self.connecting(self.manager(), reads=reads) as manager:
            yield manager

    @staticmethod
    @contextmanager
    def connecting(manager: M, *, reads: bool = False) -> Iterator[M]:
        """Connect and close ``manager``.  ``reads``: refuse to make a file that is not there.

        Raise `ConfigurationError` for a memory broker: what one process keeps there no other one sees.
        """
        settings = manager.settings
        path = settings.embedded_path()
        if settings.backend_name == "embedded" and path is None:
            raise ConfigurationError(
                "a memory broker lives inside one process, so there is nothing here that this command could reach; "
                "use a file, e.g. --url sqlite:///work.db, or a server"
            )
        if reads and path is not None and not path.exists():
            raise BrokerError(f"there is no {path} yet: nothing was sent there. Another broker: --url or --config")
        if reads:
            # The file is there and the output names it: no need to warn that nothing is configured.
            logging.getLogger("brokerkit").setLevel(logging.ERROR)
        with manager:
            yield manager


def on_broker(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the options of `Broker`, their choice as its argument ``broker``, and errors in one line."""

    @functools.wraps(command)
    def run(**arguments: Any) -> Any:
        outer = arguments.pop("ctx").obj
        chosen = Broker(url=arguments.pop("url"), config=arguments.pop("config"), name=arguments.pop("manager"))
        broker = chosen.over(outer if isinstance(outer, Broker) else None)
        with ending(as_json=bool(arguments.get("as_json"))), _plain_warnings():
            broker.check()
            broker.apply_config()
            return command(broker=broker, **arguments)

    hints = typing.get_type_hints(command, include_extras=True)
    own = [
        one.replace(annotation=hints[one.name])
        for one in inspect.signature(command).parameters.values()
        if one.name != "broker"
    ]
    keyword = inspect.Parameter.KEYWORD_ONLY
    added = [
        inspect.Parameter("ctx", keyword, annotation=typer.Context),
        inspect.Parameter("url", keyword, default=None, annotation=_URL),
        inspect.Parameter("config", keyword, default=None, annotation=_CONFIG),
        inspect.Parameter("manager", keyword, default=None, annotation=_MANAGER),
    ]
    parameters = [*(one.replace(kind=keyword) for one in own), *added]
    # typer reads the signature and the annotations; both are complete here, with nothing left to evaluate.
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {one.name: one.annotation for one in parameters}
    return run


def help_of(command: Callable[..., Any]) -> str:
    """Return the docstring with each paragraph as one line, so that it is wrapped to the terminal.

    A paragraph that begins with ``\\b`` keeps its lines.
    """
    paragraphs = inspect.cleandoc(command.__doc__ or "").split("\n\n")
    return "\n\n".join(one if one.startswith("\b") else " ".join(one.split()) for one in paragraphs)


class CommandFailed(Exception):
    """Ends the command with one line and an exit code; raised by `fail`."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


@contextmanager
def ending(*, as_json: bool = False) -> Iterator[None]:
    """Turn errors into one line on stderr, with ``as_json`` also an object on stdout, and an exit code."""
    try:
        yield
    except CommandFailed as failure:
        _end(failure, str(failure), failure.code, as_json)
    except (ConfigurationError, PayloadError, CapabilityNotSupported) as error:
        _end(error, str(error), WRONG, as_json)
    except BrokerError as error:
        _end(error, str(error), FAILED, as_json)
    except BrokenPipeError:
        # Whoever read our output has seen enough, as `head` does.  Python must not try to flush the rest.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(FAILED) from None
    except OSError as error:
        place = f": {error.filename}" if error.filename else ""
        _end(error, f"{error.strerror or error}{place}", FAILED, as_json)
    except KeyboardInterrupt:
        raise typer.Exit(_INTERRUPTED) from None


def fail(message: str, code: int = FAILED) -> NoReturn:
    """End the command with one line on stderr."""
    raise CommandFailed(message, code)


def complain(message: str) -> None:
    """Print one line on stderr."""
    typer.echo(f"brokerkit: {message}", err=True)


def _end(error: Exception, text: str, code: int, as_json: bool) -> NoReturn:
    if as_json:
        print_json({"error": {"type": type(error).__name__, "text": text}, "exit_code": code})
    complain(text)
    raise typer.Exit(code) from None


@contextmanager
def _plain_warnings() -> Iterator[None]:
    """Print the warnings of the library as the commands print theirs, until a command sets up a log, as workers do."""
    handler = logging.StreamHandler()
    handler.addFilter(lambda record: not logging.getLogger().handlers)
    handler.setFormatter(logging.Formatter("brokerkit: %(message)s"))
    logger = logging.getLogger("brokerkit")
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
