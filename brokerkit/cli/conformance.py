"""``brokerkit conformance``."""

from __future__ import annotations

import contextlib
import io
import json
from typing import Annotated

import typer

from brokerkit.cli.broker import WRONG, ending, fail

__all__ = ["conformance"]


def conformance(
    url: Annotated[str, typer.Argument(help="The broker to prove, e.g. sqlite:///x.db or memory://name.")],
    keyword: Annotated[str, typer.Option("-k", help="Only the cases whose names match, as pytest's -k.")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print the matrix as JSON, and nothing else.")] = False,
) -> None:
    """Run the conformance suite against a broker and print a matrix by capability.

    Exit code 0: every case that could run passed; 1: a case failed; 2: the suite could not run.

    \b
    Example:
      brokerkit conformance sqlite:///x.db -k order
    """
    try:
        from brokerkit.testing.conformance import harness_for, run
    except ModuleNotFoundError as missing:
        fail(f"the suite needs {missing.name}: pip install 'brokerkit[testing]'", WRONG)
    with ending():
        harness = harness_for(url)
    # pytest would print its progress between the braces.
    with contextlib.redirect_stdout(io.StringIO()) if as_json else contextlib.nullcontext():
        code, matrix = run(harness, keyword=keyword or None)
    if as_json:
        typer.echo(json.dumps(matrix.as_dict() if matrix is not None else {}, indent=2))
    raise typer.Exit(code)
