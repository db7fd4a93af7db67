"""The Python clients of others, each in an environment of its own: they share the name ``rocketmq`` and would
overwrite each other, and neither may be installed beside brokerkit's own dependencies.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from benchmarks.rocketmq.peers.cache import alone, peers_cache
from benchmarks.rocketmq.peers.process import Peer
from brokerkit.testing.services.rocketmq import RocketMQAddress
from brokerkit.testing.services.service import Missing

__all__ = ["cpp_peer", "environment", "grpc_peer"]

#: The C++ client in a wheel that holds its library, and the official client of 5.x.
_CPP, _GRPC = "rocketmq==0.4.4", "rocketmq-python-client==5.1.2"
#: Seconds for pip.
_PATIENCE = 600.0


def environment(requirement: str) -> Path | Missing:
    """Return the Python of an environment with ``requirement``; made and filled once."""
    name = requirement.replace("==", "-")
    folder = peers_cache() / f"{name}-py{sys.version_info.major}.{sys.version_info.minor}"
    # Written last: an environment cannot be renamed when it is complete.
    complete, python = folder / "complete", folder / "bin" / "python"
    if complete.exists():
        return python
    with alone(folder):
        if not complete.exists():
            commands = (
                [sys.executable, "-m", "venv", "--clear", str(folder)],
                [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", requirement],
            )
            for command in commands:
                try:
                    subprocess.run(command, check=True, capture_output=True, text=True, timeout=_PATIENCE)
                except subprocess.CalledProcessError as error:
                    said = (error.stderr or error.stdout).strip().splitlines()
                    return Missing("rocketmq", f"{requirement} cannot be installed: {said[-1] if said else error}")
            complete.touch()
    return python


def cpp_peer(address: RocketMQAddress, folder: Path) -> Peer | Missing:
    """Start the C++ client; ``folder`` takes its logs."""
    return _started(_CPP, "cpp_program.py", ";".join(address.name_servers), address, folder)


def grpc_peer(address: RocketMQAddress, folder: Path) -> Peer | Missing:
    """Start the gRPC client; ``folder`` takes its logs.  The server must have been started with a proxy."""
    endpoint = next((broker.grpc for broker in address.masters if broker.grpc), None)
    if endpoint is None:
        return Missing("rocketmq", "this server has no gRPC endpoint")
    return _started(_GRPC, "grpc_program.py", endpoint, address, folder)


def _started(requirement: str, program: str, where: str, address: RocketMQAddress, folder: Path) -> Peer | Missing:
    python = environment(requirement)
    if isinstance(python, Missing):
        return python
    login = () if address.admin is None else (address.admin.access_key, address.admin.secret_key)
    # Both write log files below the home directory.
    variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {"HOME": str(folder)}
    command = [str(python), str(Path(__file__).with_name(program)), where, *login]
    return Peer(command, variables, folder / f"{program}.log")
