"""``brokerkit worker``."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from typing import Annotated

import typer

from brokerkit.cli.broker import Broker
from brokerkit.cli.serve import Order, say, serve
from brokerkit.cli.targets import check_targets
from brokerkit.errors import ConfigurationError
from brokerkit.settings_sources import PREFIX
from brokerkit.state_files import StateFile
from brokerkit.supervisor import Supervisor
from brokerkit.url import BrokerUrl

__all__ = ["worker"]


def worker(
    broker: Broker,
    targets: Annotated[
        list[str],
        typer.Argument(
            metavar="MODULE[:NAME]",
            help="The module of the manager, and its name there: a Manager, an AsyncManager or a factory of one; "
            "without a name the only one. Further modules are imported for their handlers.",
        ),
    ],
    processes: Annotated[
        int, typer.Option(metavar="N", min=1, max=256, help="Worker processes; dead ones are restarted.")
    ] = 1,
    concurrency: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, help="Messages at once for each handler, in place of what it says."),
    ] = None,
    only: Annotated[list[str] | None, typer.Option(metavar="TOPIC", help="Only its handlers; may be repeated.")] = None,
    worker_id: Annotated[
        str | None, typer.Option("--id", metavar="ID", help="Name in `status` and `doctor`; unique on this host.")
    ] = None,
    reload: Annotated[
        bool, typer.Option("--reload", metavar="", help="Restart when a file of the project changes.")
    ] = False,
) -> None:
    """Run the handlers of an application until Ctrl-C or SIGTERM.

    The working directory is importable. The first signal lets running handlers finish (stop_timeout), the
    second one stops at once; nothing is lost either way. With --processes above 1 or --reload a supervisor
    restarts processes that die; when the supervisor itself is killed, its processes stop too.

    Exit codes: 0 stopped as asked, 1 failed, 2 cannot work as given: no such module, no handlers.

    \b
    Examples:
      brokerkit worker app
      brokerkit worker app:manager shop.handlers --processes 4
      brokerkit worker app:make_manager --only orders --concurrency 50
      brokerkit worker app --reload
    """
    check_targets(targets)
    if broker.url is not None:
        try:
            BrokerUrl.parse(broker.url)
        except ConfigurationError as error:
            raise ConfigurationError(f"--url: {error}") from None
        # The application makes its own manager; a URL in its code still wins.
        os.environ[f"{PREFIX}URL"] = broker.url
    name = worker_id or f"{targets[0].partition(':')[0]}-{os.getpid()}"
    # An id that cannot be used is refused before anything is started.
    StateFile(name)
    order = Order(
        targets=tuple(targets),
        worker_id=name,
        unnamed=worker_id is None,
        manager=broker.name,
        only=tuple(only or ()),
        concurrency=concurrency,
    )
    if processes == 1 and not reload:
        code = serve(order)
    else:
        code = Supervisor(
            lambda number, lifeline, reports: _command(order, number, processes, lifeline, reports),
            processes,
            reload=reload,
            say=say,
        ).run()
    raise typer.Exit(code)


def _command(order: Order, number: int, count: int, lifeline: int, reports: int) -> list[str]:
    worker_id = order.worker_id if count == 1 else f"{order.worker_id}-{number}"
    child = replace(order, worker_id=worker_id, lifeline=lifeline, reports=reports)
    return [sys.executable, "-m", "brokerkit.cli.serve", child.to_json()]
