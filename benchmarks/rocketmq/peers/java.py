"""The official Java client, of the server's own version: it is among the server's jars."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks.rocketmq.peers.cache import alone, peers_cache
from benchmarks.rocketmq.peers.process import Peer
from brokerkit.testing.services.rocketmq import RocketMQAddress, RocketMQInstallation
from brokerkit.testing.services.service import Missing

__all__ = ["compiled", "java_peer"]

_SOURCE = Path(__file__).parents[2] / "java" / "RocketMQPeer.java"
#: Seconds for the compiler.
_PATIENCE = 300.0


def compiled(installation: RocketMQInstallation) -> Path | Missing:
    """Return the folder of the compiled program; made once for a version and a source."""
    digest = hashlib.sha256(_SOURCE.read_bytes()).hexdigest()[:12]
    folder = peers_cache() / f"java-{installation.version}-{digest}"
    if folder.exists():
        return folder
    compiler = shutil.which("javac")
    if compiler is None:
        return Missing("rocketmq", "there is no Java compiler: apt-get install openjdk-17-jdk-headless")
    with alone(folder):
        if not folder.exists():
            unfinished = Path(tempfile.mkdtemp(dir=folder.parent))
            command = [compiler, "-nowarn", "-proc:none", "-cp", installation.classpath, "-d", str(unfinished)]
            subprocess.run([*command, str(_SOURCE)], check=True, capture_output=True, timeout=_PATIENCE)
            unfinished.rename(folder)
    return folder


def java_peer(
    installation: RocketMQInstallation,
    address: RocketMQAddress,
    folder: Path,
    *,
    java_options: Sequence[str] = (),
    **options: str,
) -> Peer | Missing:
    """Start the program; ``folder`` takes its logs.

    ``java_options`` are for Java, ``options`` for the program: ``compression`` (5.x: LZ4, ZSTD, ZLIB).
    """
    classes = compiled(installation)
    if isinstance(classes, Missing):
        return classes
    told = {"name_server": ";".join(address.name_servers), **options}
    if address.admin is not None:
        told |= {"access_key": address.admin.access_key, "secret_key": address.admin.secret_key}
    command = [
        installation.java,
        "-Xms32m",
        "-Xmx512m",
        *java_options,
        # Where its log files go.
        f"-Duser.home={folder}",
        "-cp",
        f"{installation.classpath}:{classes}",
        "RocketMQPeer",
        *(f"{name}={value}" for name, value in told.items()),
    ]
    return Peer(command, os.environ, folder / "java.log")
