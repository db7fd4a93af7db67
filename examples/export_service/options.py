"""What the demo is asked to do: its options, the folder of a run and the broker."""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import quote

from brokerkit import ConfigurationError, Settings
from brokerkit.url import BrokerUrl
from examples.export_service.crew import ROOT

__all__ = ["Options", "absolute_url", "new_folder", "options_of"]

_FILE = "broker.db"


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How one run of the demo is done."""

    broker: str
    out: Path
    processes: int
    #: Seconds until the demo gives up waiting for its tasks.
    deadline: float
    json: Path | None = None
    picture: Path | None = None


def options_of(arguments: Sequence[str] | None = None) -> Options:
    """Return the options of a command line; ends the process, with a sentence, for wrong ones."""
    parser = argparse.ArgumentParser(
        prog="python -m examples.export_service",
        description="Submits some hundreds of export tasks, has workers in other processes make the documents, kills "
        "one worker on the way and accounts for every task. Exit codes: 0 nothing lost, nothing doubled; 1 otherwise; "
        "2 cannot work like this; 130 Ctrl-C.",
    )
    parser.add_argument("--broker", metavar="URL", help="the broker; default: $BROKER, else a file in the folder")
    parser.add_argument("--out", metavar="FOLDER", help="where the runs go; default: $OUT, else demo-output")
    parser.add_argument(
        "--processes",
        type=int,
        choices=range(2, 9),
        default=min(max(os.cpu_count() or 2, 2), 3),
        metavar="N",
        help="workers, 2 to 8; default: 2 or 3",
    )
    parser.add_argument(
        "--deadline", type=_positive, default=300, metavar="SECONDS", help="when to give up; default: 300"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the account there as JSON too")
    parser.add_argument("--picture", type=Path, metavar="FILE", help="write what was shown there as SVG")
    given = parser.parse_args(arguments)
    # `make demo BROKER=… OUT=…` hands both over in the environment, where `ps` shows no password.
    out = Path(os.path.abspath(given.out or os.environ.get("OUT") or ROOT / "demo-output"))
    return Options(
        broker=given.broker or os.environ.get("BROKER") or f"sqlite:///{quote(str(out / _FILE))}",
        out=out,
        processes=given.processes,
        deadline=given.deadline,
        json=given.json,
        picture=given.picture,
    )


def new_folder(out: Path) -> Path:
    """Make the folder of this run, which no other run has; raise `OSError`."""
    out.mkdir(parents=True, exist_ok=True)
    name = time.strftime("run-%Y%m%d-%H%M%S")
    for number in range(1, 1000):
        folder = out / (name if number == 1 else f"{name}-{number}")
        try:
            folder.mkdir()
        except FileExistsError:
            continue
        return folder
    raise FileExistsError(f"{out / name} and its successors are there already")


def absolute_url(url: str, settings: Settings) -> BrokerUrl:
    """Return the broker for other processes, wherever they run.

    Raise `ConfigurationError` for a broker that lives in this process only.
    """
    parsed = BrokerUrl.parse(url)
    if settings.backend_name != "embedded":
        return parsed
    path = settings.embedded_path()
    if path is None:
        raise ConfigurationError(
            "a memory broker lives inside one process, and the workers of the demo are other processes; "
            "leave BROKER out, or give a file (BROKER=sqlite:///demo.db) or a server"
        )
    return replace(parsed, path=str(path))


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)
