"""Where the programs of a RabbitMQ are and how they are run: those of this machine, or of a folder with a system."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from brokerkit.testing.services.service import Missing

__all__ = ["Installation", "find_installation"]

#: Debian's links to the programs themselves: the wrappers in /usr/sbin insist on root or the user rabbitmq.
_DEBIAN = "/usr/lib/rabbitmq/bin"

#: Runs a program inside another system's folder: the mounts are its own and end with it.  $1 is the folder, $2 the
#: directory that both sides know by the same path.
_ENTER = (
    'root=$1; shared=$2; shift 2; for each in proc dev sys; do mount --rbind "/$each" "$root/$each"; done; '
    'mount -t tmpfs none "$root/tmp"; mkdir -p "$root$shared"; mount --bind "$shared" "$root$shared"; '
    'exec chroot "$root" "$@"'
)


@dataclass(frozen=True, slots=True)
class Installation:
    """The programs of one RabbitMQ server."""

    #: Directory of rabbitmq-server and rabbitmqctl, as seen inside `root`.
    programs: str
    #: Such as "3.10.8".
    version: str
    #: Folder of a whole system that holds them; None for this machine's own.  Running them needs root then.
    root: str | None = None

    def run(self, command: Sequence[str], environment: dict[str, str], shared: Path) -> list[str]:
        """Return the command line that runs ``command`` with nothing but ``environment``.

        ``shared`` is the directory of this machine that the command works in.
        """
        path = os.environ.get("PATH", os.defpath) if self.root is None else "/usr/sbin:/usr/bin:/sbin:/bin"
        # A clean slate: RABBITMQ_* of a user's shell would change or break the node.
        variables = [f"{name}={value}" for name, value in {"PATH": path, "LANG": "C.UTF-8", **environment}.items()]
        plain = ["/usr/bin/env", "-i", *variables, *command]
        if self.root is None:
            return plain
        return ["unshare", "--mount", "sh", "-ec", _ENTER, "sh", self.root, str(shared), *plain]

    def program(self, name: str) -> str:
        """Return the path of one of RabbitMQ's own programs."""
        return f"{self.programs}/{name}"

    def erlang(self, name: str) -> str | None:
        """Return the path of a program that comes with Erlang, None where there is none."""
        if self.root is None:
            return shutil.which(name)
        return f"/usr/bin/{name}" if Path(self.root, "usr", "bin", name).exists() else None

    @property
    def major(self) -> int:
        """First number of the version."""
        return int(self.version.partition(".")[0])


def find_installation(root: str | None = None) -> Installation | Missing:
    """Return the RabbitMQ of this machine, or of the system in the folder ``root``."""
    for programs in _candidates(root):
        server = Path((root or "") + programs, "rabbitmq-server")
        if not server.exists():
            continue
        found = re.search(r"rabbitmq_server-(\d+(?:\.\d+)*)", str(server.resolve()))
        if found is None:
            continue  # a wrapper, which insists on its own user
        installation = Installation(programs, found[1], root)
        if installation.erlang("epmd") is not None:
            return installation
    return Missing("rabbitmq", "there is no rabbitmq-server here: apt-get install rabbitmq-server")


def _candidates(root: str | None) -> list[str]:
    found = shutil.which("rabbitmq-server") if root is None else None
    return [_DEBIAN, *([str(Path(found).resolve().parent)] if found is not None else [])]
