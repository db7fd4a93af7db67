"""Where compiled programs and environments of peers are kept between runs: in the user's cache, not the repository."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

__all__ = ["alone", "peers_cache"]


def peers_cache() -> Path:
    """Return the folder; it exists."""
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = Path(root, "brokerkit", "rocketmq-peers")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@contextlib.contextmanager
def alone(path: Path) -> Iterator[None]:
    """Let other processes that make ``path`` wait."""
    with path.with_name(f"{path.name}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
