"""``brokerkit conformance``."""

from __future__ import annotations

import contextlib
import io
from typing import Annotated

import typer

from brokerkit.cli.broker import WRONG, ending, fail
from brokerkit.cli.output import AsJson, print_json

__all__ = ["conformance"]

#: pytest catches Ctrl-C, and returns this.
_PYTEST_INTERRUPTED = 2


def conformance(
    url: Annotated[
        str, typer.Argument(metavar="URL", help="The broker to prove, e.g. sqlite:///x.db or memory://name.")
    ],
    keyword: Annotated[
        str, typer.Option("-k", metavar="EXPRESSION", help="Only the cases whose names match, as pytest's -k.")
    ] = "",
    as_json: AsJson = False,
) -> None:
    """Run the conformance suite against a broker and print a matrix by capability.

    Exit code 0: every case that could run passed; 1: a case failed; 2: the suite could not run.

    \b
    Example:
      brokerkit conformance sqlite:///x.db -k order
    """
    with ending(as_json=as_json):
        try:
            from brokerkit.testing.conformance import harness_for, run
        except ModuleNotFoundError as missing:
            fail(f"the suite needs {missing.name}: pip install 'brokerkit[testing]'", WRONG)
        harness = harness_for(url)
        # pytest would print its progress between the braces.
        with contextlib.redirect_stdout(io.StringIO()) if as_json else contextlib.nullcontext():
            code, matrix = run(harness, keyword=keyword or None)
        if code == _PYTEST_INTERRUPTED:
            raise KeyboardInterrupt
        if matrix is None:
            fail("no case ran" + (f": -k {keyword} matches none" if keyword else ""), WRONG)
    if as_json:
        print_json(matrix.as_dict())
    raise typer.Exit(code)
