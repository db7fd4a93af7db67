"""RabbitMQ 4.x on a machine whose own packages are older: Debian trixie's, in a folder."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

from brokerkit.errors import BrokerUnavailable
from brokerkit.testing.services.rabbitmq_installation import Installation, find_installation
from brokerkit.testing.services.service import Missing

__all__ = ["newer_installation"]

_RELEASE = "trixie"

#: Seconds; a minute on an idle machine, most of it unpacking.
_TIMEOUT = 1800.0

_APT = Path("/etc/apt")


def newer_installation(cache: Path | None = None) -> Installation | Missing:
    """Return RabbitMQ 4.x from Debian trixie, unpacked into a folder that stays in the user's cache (370 MB).

    The first call takes a minute.  Needs root and debootstrap; the packages come from the mirror of this machine's
    own sources.  `BrokerUnavailable` when unpacking fails.
    """
    if os.geteuid() != 0:
        return Missing("rabbitmq", f"running RabbitMQ of {_RELEASE} in a folder needs root")
    if cache is None:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "brokerkit")
    folder = cache / f"rabbitmq-{_RELEASE}"
    cache.mkdir(parents=True, exist_ok=True)
    with _alone(cache / f"{folder.name}.lock"):
        if not folder.exists():
            program = shutil.which("debootstrap")
            if program is None:
                return Missing("rabbitmq", "there is no debootstrap: apt-get install debootstrap")
            mirror = _mirror()
            if mirror is None:
                return Missing("rabbitmq", f"no Debian mirror among the apt sources in {_APT}")
            _unpack(program, mirror, folder)
    return find_installation(str(folder))


def _unpack(program: str, mirror: str, folder: Path) -> None:
    # Complete or not there: a run that dies leaves only the other name.
    unfinished = folder.with_name(f"{folder.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    options = ["--variant=minbase", "--include=rabbitmq-server"]
    command: Sequence[str] = [program, *options, _RELEASE, str(unfinished), mirror]
    try:
        ended = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_TIMEOUT)
    except subprocess.TimeoutExpired as error:
        raise BrokerUnavailable(f"debootstrap did not finish within {_TIMEOUT:g} s") from error
    if ended.returncode != 0:
        said = (ended.stdout + ended.stderr)[-1000:].replace(mirror, "<mirror>")
        raise BrokerUnavailable(f"debootstrap of {_RELEASE} failed: {said}")
    shutil.rmtree(unfinished / "var/cache/apt/archives", ignore_errors=True)
    unfinished.rename(folder)


def _mirror() -> str | None:
    """Return the first Debian archive among the machine's own sources, in either of apt's two notations."""
    files = [_APT / "sources.list", *sorted((_APT / "sources.list.d").glob("*"))]
    for file in files:
        if not file.is_file():
            continue
        for line in file.read_text(errors="replace").splitlines():
            found = re.match(r"(?:URIs:\s*|deb\s+(?:\[[^\]]*\]\s+)?)(\S+/debian/?)(?:\s|$)", line)
            if found is not None:
                return found[1]
    return None


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
