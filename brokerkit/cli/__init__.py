"""The console script ``brokerkit``."""

from __future__ import annotations

import signal
import sys

__all__ = ["main"]


def main() -> None:
    """Run the command line; say what to install where its libraries are missing."""
    before = signal.getsignal(signal.SIGINT)
    if before is signal.default_int_handler:
        # While the libraries are loaded, Ctrl-C ends the process as it ends other commands: without a traceback.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        from brokerkit.cli.app import app
    except ModuleNotFoundError as missing:
        if missing.name not in ("typer", "rich", "click"):
            raise
        print("the command line needs two more libraries: pip install 'brokerkit[cli]'", file=sys.stderr)
        sys.exit(2)
    if before is signal.default_int_handler:
        signal.signal(signal.SIGINT, before)
    app(prog_name="brokerkit")
