"""``python -m examples.export_service``: the demo, which ``make demo`` runs."""

from __future__ import annotations

import signal
import sys


def main() -> int:
    """Say in a sentence what is missing; run the demo otherwise."""
    # Until the demo listens Ctrl-C just ends, as it does in any other program.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        from examples.export_service.demo import run
    except ModuleNotFoundError as missing:
        sys.stderr.write(f"The library {missing.name} is not installed here. Run: make demo\n")
        return 2
    return run()


if __name__ == "__main__":
    sys.exit(main())
