"""Whether a path can hold the embedded broker's file: checked before SQLite is asked, whose words are few."""

from __future__ import annotations

import os
import re
from pathlib import Path

from brokerkit.errors import AccessRefused, ConfigurationError

__all__ = ["check_location", "filesystem_of"]

_MOUNTS = Path("/proc/self/mountinfo")
#: File systems that machines share: WAL needs memory that all processes share (sqlite.org/wal.html).
_NETWORKED = re.compile(
    r"(?:fuse\.)?(?:9p|afs|afpfs|beegfs|ceph|cifs|coda|davfs|gcsfuse|gfs2|glusterfs|gpfs|lustre|ncpfs|nfs4?|ocfs2"
    r"|orangefs|pvfs2|rclone|s3fs|smb[23]|smbfs|sshfs)"
)


def check_location(path: Path, mounts: str | None = None) -> None:
    """Raise `ConfigurationError` or `AccessRefused` that names what keeps ``path`` from holding the store.

    ``mounts`` is the text of ``/proc/self/mountinfo``; None reads it where there is one.
    """
    directory = path.parent
    if not directory.is_dir():
        raise ConfigurationError(f"the directory {directory} of the embedded broker's file does not exist: create it")
    if path.is_dir():
        raise ConfigurationError(f"{path} is a directory; the embedded broker needs the path of a file")
    if mounts is None:
        try:
            mounts = _MOUNTS.read_text(encoding="utf-8", errors="surrogateescape")
        except OSError:
            mounts = ""
    kind = filesystem_of(path, mounts)
    if kind is not None and _NETWORKED.fullmatch(kind):
        raise ConfigurationError(
            f"{path} is on a network file system ({kind}), where SQLite's WAL cannot work: use a local disk, "
            "or a broker that several machines can reach"
        )
    if not os.access(directory, os.W_OK | os.X_OK):
        raise AccessRefused(f"the directory {directory} is not writable; SQLite keeps files beside {path.name}")
    if path.exists() and not os.access(path, os.R_OK | os.W_OK):
        raise AccessRefused(f"{path} is not readable and writable for this user")


def filesystem_of(path: Path, mounts: str) -> str | None:
    """Return the type of the file system that holds ``path``, as ``/proc/self/mountinfo`` names it (proc(5))."""
    target = os.path.realpath(path)
    best, kind = -1, None
    for line in mounts.splitlines():
        left, separator, right = line.partition(" - ")
        fields = left.split(" ")
        if not separator or len(fields) < 5:
            continue
        point = re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), fields[4])
        inside = target == point or target.startswith(point.rstrip("/") + "/")
        # A later line with the same mount point hides the earlier one.
        if inside and len(point) >= best:
            best, kind = len(point), right.split(" ")[0]
    return kind
