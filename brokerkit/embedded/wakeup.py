"""Waking other processes: one Unix datagram socket per store, in a directory beside the file.

After a commit the writer sends the ids of the groups that have something new to every other socket.  A datagram
that is lost (a full buffer) costs nothing: its receiver has been woken and looks anyway, and consumers poll slowly.
"""

from __future__ import annotations

import hashlib
import os
import socket
import struct
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

__all__ = ["WakeSocket"]

_SUFFIX = ".sock"
#: Bytes of a socket's path, its final NUL included: 108 on Linux (unix(7)), 104 on BSD and macOS.
_PATH_LIMIT = 104
_MAX_GROUPS = 100
#: A directory's modification time advances in steps; younger than this, a listing may already be out of date.
_GRAIN_NS = 50_000_000


class WakeSocket:
    """This store's socket, and the way to all others.  `announce` may be called by one thread at a time."""

    def __init__(self, directory: Path, name: str) -> None:
        self._name = name + _SUFFIX
        # On macOS, paths that are too long: both ends find the same short directory by the name of the long one.
        # Linux reaches any directory through a descriptor.
        self._directory = str(directory)
        self._descriptor = -1
        prefix = self._directory
        if len(os.fsencode(prefix)) + len(self._name) + 2 > _PATH_LIMIT:
            if os.path.isdir("/proc/self/fd"):
                self._descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
                prefix = f"/proc/self/fd/{self._descriptor}"
            else:
                status = os.stat(directory)
                digest = hashlib.sha256(f"{status.st_dev}:{status.st_ino}".encode()).hexdigest()[:16]
                prefix = self._directory = os.path.join(tempfile.gettempdir(), f"brokerkit-{digest}")
                os.makedirs(prefix, exist_ok=True)
        self._prefix = prefix + "/"
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.setblocking(False)
        self._socket.bind(self._prefix + self._name)
        self._listed = -1
        self._others: list[str] = []

    def fileno(self) -> int:
        """Return the descriptor to watch for reading."""
        return self._socket.fileno()

    def announce(self, groups: Iterable[int]) -> None:
        """Tell all other stores that these groups have something new."""
        others = self._list()
        if not others:
            return
        numbers = list(groups)
        # An empty datagram means: look everywhere.
        payload = b"" if len(numbers) > _MAX_GROUPS else struct.pack(f"<{len(numbers)}Q", *numbers)
        for address in others:
            try:
                self._socket.sendto(payload, address)
            except ConnectionRefusedError:
                # Its process was killed: nobody can be bound to this name again.
                try:
                    os.unlink(address)
                except OSError:
                    continue
            except OSError:
                continue

    def read(self) -> set[int] | None:
        """Return the groups that were announced since the last call; None: any group."""
        groups: set[int] = set()
        everything = False
        while True:
            try:
                payload = self._socket.recv(8 * _MAX_GROUPS)
            except OSError:
                return None if everything else groups
            everything = everything or not payload or len(payload) % 8 != 0
            if not everything:
                groups.update(number for (number,) in struct.iter_unpack("<Q", payload))

    def _list(self) -> list[str]:
        try:
            changed = os.stat(self._directory).st_mtime_ns
            if changed == self._listed:
                return self._others
            names = [name for name in os.listdir(self._directory) if name.endswith(_SUFFIX)]
        except OSError:
            # Gone, or as many files are open as the process may have: consumers elsewhere look by themselves.
            return []
        self._others = [self._prefix + name for name in names if name != self._name]
        # The kernel stamps the directory with the wall clock of this machine, whatever clock a test uses.
        self._listed = changed if time.time_ns() - changed > _GRAIN_NS else -1
        return self._others

    def abandon(self) -> None:
        """Close this process's copy without touching the file: in the child of a fork."""
        self._socket.close()
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def close(self) -> None:
        """Remove the socket."""
        try:
            os.unlink(self._prefix + self._name)
        except OSError:
            pass
        self.abandon()
