"""``brokerkit doctor``: what is wrong here, and what to do about it."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from dataclasses import asdict
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from brokerkit.blocking import Manager
from brokerkit.cli.broker import FAILED, WRONG, Broker
from brokerkit.cli.checks import (
    Finding,
    application_findings,
    broker_findings,
    clock_findings,
    configuration_findings,
    source_of_settings,
    worker_findings,
)
from brokerkit.cli.output import AsJson, print_json, printable
from brokerkit.cli.serve import broker_of
from brokerkit.cli.targets import load_manager
from brokerkit.clock import SystemClock
from brokerkit.errors import BrokerError, ConfigurationError
from brokerkit.state_files import read_states

__all__ = ["doctor"]

_MARKS = {"ok": "[green]ok    [/]", "advice": "[yellow]advice[/]", "wrong": "[bold red]wrong [/]"}


def doctor(
    broker: Broker,
    target: Annotated[
        str | None, typer.Argument(metavar="MODULE[:NAME]", help="An application, to look at its handlers too.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Look at configuration, broker, handlers, clock and workers of this host; say what to do.

    It changes nothing and creates nothing. Exit codes: 0 nothing wrong (there may be advice), 1 something is
    wrong, 2 the configuration or the application cannot be loaded.

    \b
    Examples:
      brokerkit doctor
      brokerkit doctor app:manager --json
    """
    found: list[Finding] = []
    code = 0
    try:
        for one in _findings(broker, target):
            found.append(one)
            if not as_json:
                _print(one)
    except ConfigurationError as error:
        found.append(
            Finding(
                level="wrong", about="configuration", text=str(error).removeprefix("configuration: "), cure="correct it"
            )
        )
        if not as_json:
            _print(found[-1])
        code = WRONG
    wrong = sum(one.level == "wrong" for one in found)
    if as_json:
        print_json({"wrong": wrong, "findings": [asdict(one) for one in found]})
    else:
        typer.echo(f"{wrong} wrong" if wrong else "nothing is wrong")
    raise typer.Exit(code or (FAILED if wrong else 0))


def _findings(broker: Broker, target: str | None) -> Iterator[Finding]:
    clock = SystemClock()
    application = load_manager([target], broker.name) if target is not None else None
    manager = broker.manager()
    if application is not None:
        # A blocking one of our own, with the same broker, topics and groups.
        manager = Manager(backend=application.backend, settings=application.settings, name=application.name)
        manager.include(application)
    logging.getLogger("brokerkit").setLevel(logging.ERROR)
    settings = manager.settings if application is None else application.settings
    source = "--url" if broker.url is not None else source_of_settings()
    yield from configuration_findings(settings, source)
    try:
        if settings.enabled:
            yield from broker_findings(manager, clock)
    except BrokerError as error:
        yield Finding(level="wrong", about="broker", text=str(error), cure="look at the broker's own log")
    finally:
        manager.close()
    if application is not None:
        yield from application_findings(application)
    yield from clock_findings(clock)
    here = broker_of(settings)
    yield from worker_findings([one for one in read_states() if one.broker == here], clock)


def _print(finding: Finding) -> None:
    console = Console(soft_wrap=True) if sys.stdout.isatty() else Console(soft_wrap=True, width=1000)
    console.print(f"{_MARKS[finding.level]}  {escape(printable(f'{finding.about}: {finding.text}'))}", highlight=False)
    if finding.cure:
        console.print(f"        -> {escape(printable(finding.cure))}", highlight=False)
