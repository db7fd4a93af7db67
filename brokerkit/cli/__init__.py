"""The console script ``brokerkit``."""

from __future__ import annotations

import sys

__all__ = ["main"]


def main() -> None:
    """Run the command line; say what to install where its libraries are missing."""
    try:
        from brokerkit.cli.app import app
    except ModuleNotFoundError as missing:
        if missing.name not in ("typer", "rich", "click"):
            raise
        print("the command line needs two more libraries: pip install 'brokerkit[cli]'", file=sys.stderr)
        sys.exit(2)
    app(prog_name="brokerkit")
