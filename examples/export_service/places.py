"""Where things are below the folder of the export service, and how they are called on the terminal."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from brokerkit.url import BrokerUrl

__all__ = ["DOCUMENTS", "JOURNAL", "RATES", "WORKERS_LOG", "here", "shown"]

#: The finished documents, and those that are being written.
DOCUMENTS = "documents"
#: What the workers did.
JOURNAL = "journal.jsonl"
#: How often the exchange-rate service was asked, a file per task.
RATES = "rates"
#: What the worker processes said.
WORKERS_LOG = "workers.log"


def here(path: Path) -> str:
    """Return a path as one would type it in the shell that started this."""
    # Not the working directory, which `make -C` changes.
    shell = Path(os.environ.get("PWD", os.getcwd()))
    return str(path.relative_to(shell)) if path.is_relative_to(shell) else str(path)


def shown(url: BrokerUrl) -> str:
    """Return a broker as one would type it there, without its password."""
    return str(replace(url, path=here(Path(url.path)))) if url.scheme == "sqlite" else str(url)
