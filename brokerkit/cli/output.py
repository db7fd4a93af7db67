"""How commands print: tables for people, JSON for programs."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Sequence
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

__all__ = ["AsJson", "body_of", "duration", "figure", "print_json", "print_table"]

AsJson = Annotated[bool, typer.Option("--json", metavar="", help="Print JSON, and nothing else on stdout.")]

#: Columns of output that goes into a file or a pipe, where nobody says how wide it may be.
_PIPE_WIDTH = 160


def print_json(value: Any) -> None:
    """Print plain data, indented."""
    typer.echo(json.dumps(value, indent=2, ensure_ascii=False))


def print_table(columns: Sequence[str], rows: Iterable[Sequence[str]], *, title: str | None = None) -> None:
    """Print a table; texts are shown as they are, without markup.  Columns named in capitals are figures."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=_PIPE_WIDTH)
    table = Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="bold")
    for column in columns:
        right = column.startswith(">")
        table.add_column(column.lstrip(">"), justify="right" if right else "left", overflow="fold")
    for row in rows:
        table.add_row(*(escape(printable(cell)) for cell in row))
    console.print(table)


def printable(text: str) -> str:
    """Return the text without what would steer the terminal."""
    return "".join(character if character.isprintable() or character == "\n" else "\ufffd" for character in text)


def figure(value: float | None) -> str:
    """Return a number for people; unknown is not 0."""
    return "?" if value is None else f"{value:,}"


def duration(seconds: float | None) -> str:
    """Return seconds as people say them: 0.3 s, 12 s, 5 min, 3 h, 2 d."""
    if seconds is None:
        return "-"
    if seconds < 10:
        return f"{max(seconds, 0):.1f} s"
    for limit, divisor, unit in ((120, 1, "s"), (7200, 60, "min"), (172800, 3600, "h")):
        if seconds < limit:
            return f"{seconds / divisor:.0f} {unit}"
    return f"{seconds / 86400:.0f} d"


def body_of(body: bytes) -> dict[str, str]:
    """Return a body for JSON: as text, or in base64 where it is none."""
    try:
        return {"body": body.decode()}
    except UnicodeDecodeError:
        return {"body_base64": base64.b64encode(body).decode()}
