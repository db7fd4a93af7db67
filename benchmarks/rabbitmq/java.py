"""The official Java client: its library from Maven Central, a program of ours that publishes with it."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from benchmarks.rabbitmq.sides import BODY, WINDOW

__all__ = ["JavaMissing", "JavaPublisher"]

_LIBRARIES = ("com.rabbitmq:amqp-client:5.22.0", "org.slf4j:slf4j-api:1.7.36", "org.slf4j:slf4j-nop:1.7.36")
_COPY = "org.apache.maven.plugins:maven-dependency-plugin:3.6.1:copy"
_SOURCE = Path(__file__).parent.parent / "java" / "Publisher.java"
#: Seconds for a download, and for a run.
_PATIENCE = 180.0


class JavaMissing(Exception):
    """Why the Java client cannot be run here."""


class JavaPublisher:
    """The compiled program, in ``folder``.  Making it downloads what Maven's cache does not hold."""

    def __init__(self, folder: Path) -> None:
        missing = [name for name in ("java", "javac", "mvn") if shutil.which(name) is None]
        if missing:
            raise JavaMissing(f"{', '.join(missing)} not found")
        for library in _LIBRARIES:
            _run("mvn", "-q", "-B", _COPY, f"-Dartifact={library}", f"-DoutputDirectory={folder}")
        self._path = f"{folder}/*:{folder}"
        _run("javac", "-cp", self._path, "-d", str(folder), str(_SOURCE))

    def publish(self, count: int, exchange: str = "") -> float:
        """Return messages a second, through the default exchange or through a topic exchange of that name."""
        arguments = (f"bench.java{exchange}", str(count), str(WINDOW), str(len(BODY)), *filter(None, (exchange,)))
        return float(_run("java", "-cp", self._path, "Publisher", *arguments))


def _run(*command: str) -> str:
    try:
        done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=_PATIENCE)
    except subprocess.CalledProcessError as error:
        raise JavaMissing(f"{command[0]} failed: {(error.stderr or error.stdout)[-300:].strip()}") from error
    except subprocess.TimeoutExpired as error:
        raise JavaMissing(f"{command[0]} took more than {_PATIENCE:g} s") from error
    return done.stdout
