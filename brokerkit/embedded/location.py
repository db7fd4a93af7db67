"""Whether a path can hold the embedded broker's file: checked before SQLite is asked, whose words are few."""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path

from brokerkit.errors import AccessRefused, ConfigurationError

__all__ = ["check_location", "filesystem_of"]

_MOUNTS = Path("/proc/self/mountinfo")
#: File systems that machines share: WAL needs memory that all processes share (sqlite.org/wal.html).
_NETWORKED = re.compile(
    r"(?:fuse\.)?(?:9p|afs|afpfs|beegfs|ceph|cifs|coda|davfs|gcsfuse|gfs2|glusterfs|gpfs|lustre|ncpfs|nfs4?|ocfs2"
    r"|orangefs|pvfs2|rclone|s3fs|smb[23]|smbfs|sshfs)"
)

#: File systems where nothing can be created, whatever the mode of a directory says.
_OF_THE_KERNEL = frozenset({"proc", "sysfs", "cgroup", "cgroup2", "debugfs", "tracefs", "securityfs"})


def check_location(path: Path, mounts: str | None = None) -> None:
    """Raise `ConfigurationError` or `AccessRefused` that names what keeps ``path`` from holding the store.

    ``mounts`` is the text of ``/proc/self/mountinfo``; None reads it where there is one.
    """
    directory = path.parent
    try:
        if not directory.is_dir():
            what = "is not a directory" if directory.exists() else "does not exist: create it"
            raise ConfigurationError(f"the directory {directory} of the embedded broker's file {what}")
        kind = path.stat().st_mode
    except FileNotFoundError:
        kind = stat.S_IFREG
    except OSError as error:
        # What is in a directory that may not be searched nobody can say, and some names no file may have.
        if isinstance(error, PermissionError):
            raise AccessRefused(
                f"{directory} cannot be searched by this user, so {path.name} cannot be opened"
            ) from error
        raise ConfigurationError(f"{path} cannot be the embedded broker's file: {error.strerror}") from error
    except ValueError as error:
        raise ConfigurationError(f"{str(path)!r} cannot be the embedded broker's file: {error}") from error
    if stat.S_ISDIR(kind):
        raise ConfigurationError(f"{path} is a directory; the embedded broker needs the path of a file")
    if not stat.S_ISREG(kind):
        raise ConfigurationError(f"{path} is not a regular file; the embedded broker cannot keep messages there")
    if mounts is None:
        try:
            mounts = _MOUNTS.read_text(encoding="utf-8", errors="surrogateescape")
        except OSError:
            mounts = ""
    filesystem = filesystem_of(path, mounts)
    if filesystem is not None and _NETWORKED.fullmatch(filesystem):
        raise ConfigurationError(
            f"{path} is on a network file system ({filesystem}), where SQLite's WAL cannot work: use a local disk, "
            "or a broker that several machines can reach"
        )
    if filesystem in _OF_THE_KERNEL:
        raise ConfigurationError(
            f"{directory} belongs to the kernel ({filesystem}), which keeps no files of others there"
        )
    if os.statvfs(directory).f_flag & os.ST_RDONLY:
        raise AccessRefused(f"{directory} is on a file system that is mounted read-only; brokerkit must write there")
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
