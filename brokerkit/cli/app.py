"""The commands of ``brokerkit``, put together."""

from __future__ import annotations

from importlib.metadata import version
from typing import Annotated

import typer

from brokerkit.cli.bench import bench
from brokerkit.cli.broker import Broker, help_of, on_broker
from brokerkit.cli.conformance import conformance
from brokerkit.cli.dead import dead
from brokerkit.cli.doctor import doctor
from brokerkit.cli.figures import lag, status
from brokerkit.cli.sending import send, send_export
from brokerkit.cli.worker import worker

__all__ = ["app"]


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"brokerkit {version('brokerkit')}")
        raise typer.Exit


def _options(
    ctx: typer.Context,
    url: Annotated[str | None, typer.Option("--url", metavar="URL", help="The broker, e.g. sqlite:///work.db.")] = None,
    config: Annotated[
        str | None, typer.Option("--config", metavar="FILE", help="The configuration file, in place of brokerkit.yaml.")
    ] = None,
    manager: Annotated[
        str | None, typer.Option("--manager", metavar="NAME", help="A broker below managers: of the configuration.")
    ] = None,
    show_version: Annotated[
        bool,
        typer.Option("--version", metavar="", callback=_show_version, is_eager=True, help="Show the version and exit."),
    ] = False,
) -> None:
    ctx.obj = Broker(url=url, config=config, name=manager)


def app(prog_name: str = "brokerkit") -> None:
    """Run the command that the arguments of the process name, and end the process."""
    commands = typer.Typer(
        help="One message API over RabbitMQ, RocketMQ and an embedded broker. The broker is what --url names, else "
        "BROKERKIT_URL or brokerkit.yaml, else the file brokerkit.db.\n\n"
        "\b\nExamples:\n"
        "  brokerkit worker app:manager\n"
        "  brokerkit send orders '{\"id\": 1}'\n"
        "  brokerkit status\n"
        "  brokerkit doctor",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    commands.callback()(_options)
    for command in (send, send_export, worker, status, lag):
        commands.command(help=help_of(command))(on_broker(command))
    commands.add_typer(dead(), name="dead")
    commands.command(help=help_of(doctor))(on_broker(doctor))
    for alone in (bench, conformance):
        commands.command(help=help_of(alone))(alone)
    commands(prog_name=prog_name)
