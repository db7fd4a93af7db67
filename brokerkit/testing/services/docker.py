"""Whether containers can be started here."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess

from brokerkit.testing.services.service import Missing

__all__ = ["docker_missing"]

#: Seconds that the daemon may take to answer.
_TIMEOUT = 20.0


def docker_missing() -> Missing | None:
    """Return what is missing for containers, or None where testcontainers and a Docker daemon are there."""
    if importlib.util.find_spec("testcontainers") is None:
        return Missing("docker", "testcontainers is not installed: pip install testcontainers")
    command = shutil.which("docker")
    if command is None:
        return Missing("docker", "there is no docker command on the PATH")
    try:
        answer = subprocess.run(
            [command, "version", "--format", "{{.Server.Version}}"], capture_output=True, text=True, timeout=_TIMEOUT
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return Missing("docker", f"the docker command does not work: {error}")
    if answer.returncode != 0:
        return Missing("docker", f"the Docker daemon does not answer: {answer.stderr.strip()[-300:]}")
    return None
