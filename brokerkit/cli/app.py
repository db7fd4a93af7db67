"""The commands of ``brokerkit``."""

from __future__ import annotations

import contextlib
import io
import json
from importlib.metadata import version
from typing import Annotated

import typer

from brokerkit.errors import BrokerError

__all__ = ["app"]

app = typer.Typer(
    help="One message API over RabbitMQ, RocketMQ and an embedded broker.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"brokerkit {version('brokerkit')}")
        raise typer.Exit


@app.callback()
def _options(
    show_version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    pass


@app.command()
def conformance(
    url: Annotated[str, typer.Argument(help="The broker to prove, e.g. sqlite:///x.db or memory://name.")],
    keyword: Annotated[str, typer.Option("-k", help="Only the cases whose names match, as pytest's -k.")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print the matrix as JSON, and nothing else.")] = False,
) -> None:
    """Run the conformance suite against a broker and print a matrix by capability.

    Exit code 0: every case that could run passed; 1: a case failed; 2: the suite could not run.

    Example: brokerkit conformance sqlite:///x.db -k order
    """
    try:
        from brokerkit.testing.conformance import harness_for, run
    except ModuleNotFoundError as missing:
        typer.echo(f"the suite needs {missing.name}: pip install 'brokerkit[testing]'", err=True)
        raise typer.Exit(2) from None
    try:
        harness = harness_for(url)
    except BrokerError as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(2) from None
    # pytest would print its progress between the braces.
    with contextlib.redirect_stdout(io.StringIO()) if as_json else contextlib.nullcontext():
        code, matrix = run(harness, keyword=keyword or None)
    if as_json:
        typer.echo(json.dumps(matrix.as_dict() if matrix is not None else {}, indent=2))
    raise typer.Exit(code)
