"""Start marks: which deliveries of a process had a handler running when it died.

Each store keeps one file in the run directory, locked for its life and mapped into memory.  A mark is two numbers
written into a slot: it reaches the page cache at once, so it survives ``kill -9`` (not a power loss: then the boot
id in the header differs and nothing is known).  The lock tells others that the owner lives.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import struct
import threading
from pathlib import Path

__all__ = ["OwnerFile", "StartMarks", "boot_id"]

_HEADER = 64
_SLOT = struct.Struct("<QQ")
_FIRST_SLOTS = 1024
_BOOT = Path("/proc/sys/kernel/random/boot_id")


def boot_id() -> bytes:
    """Return what names this boot of the machine; empty where the system does not say."""
    try:
        return _BOOT.read_bytes().strip()[: _HEADER - 1]
    except OSError:
        return b""


class StartMarks:
    """The marks of one store, in a file that exists and is locked as long as the store lives."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        # Locked before anything of this store is in the database: nobody can take the owner for dead.
        fcntl.flock(self._fd, fcntl.LOCK_EX)
        # Handlers start on the event loop; settlements may end in the writer thread.
        self._mutex = threading.Lock()
        self._slots = 0
        self._free: list[int] = []
        self._used: dict[tuple[int, int], int] = {}
        self._map = mmap.mmap(-1, 1)
        try:
            self._grow()
        except OSError:
            self.close(remove=True)
            raise
        self._map[: len(boot_id())] = boot_id()

    def mark(self, claim: int, seq: int) -> None:
        """Record that a handler starts on the delivery ``seq`` of ``claim``.  Raise `OSError` on a full disk."""
        key = (claim, seq)
        with self._mutex:
            if key in self._used:
                return
            if not self._free:
                self._grow()
            slot = self._free.pop()
            _SLOT.pack_into(self._map, slot, claim, seq)
            self._used[key] = slot

    def clear(self, claim: int, seq: int) -> None:
        """Forget the mark, if there is one; after the settlement was committed, never before."""
        with self._mutex:
            slot = self._used.pop((claim, seq), None)
            if slot is not None:
                _SLOT.pack_into(self._map, slot, 0, 0)
                self._free.append(slot)

    def started(self) -> set[tuple[int, int]]:
        """Return the (claim, seq) that are marked."""
        with self._mutex:
            return set(self._used)

    def forget_claim(self, claim: int) -> None:
        """Clear all marks of a claim whose leases ended."""
        for key in [key for key in self.started() if key[0] == claim]:
            self.clear(*key)

    def __bool__(self) -> bool:
        return bool(self._used)

    def _grow(self) -> None:
        first, slots = self._slots, max(_FIRST_SLOTS, self._slots * 2)
        size = _HEADER + slots * _SLOT.size
        _extend(self._fd, size)
        self._map.close()
        self._map = mmap.mmap(self._fd, size)
        self._slots = slots
        self._free.extend(_HEADER + slot * _SLOT.size for slot in range(first, self._slots))

    def abandon(self) -> None:
        """Close this process's copy of the file without touching it: in the child of a fork.  Idempotent."""
        self._map.close()
        # A store that was closed before the fork may be asked again; by then its number belongs to another file.
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def close(self, *, remove: bool) -> None:
        """Let the owner be dead; ``remove`` the file when nothing is leased any more."""
        if remove:
            self.path.unlink(missing_ok=True)
        self.abandon()


def _extend(fd: int, size: int) -> None:
    """Make the file ``size`` bytes long, with zeros that have their place on the disk.

    The pages of a hole get theirs only when the memory is written to; where the disk is full by then, the kernel
    ends the process with SIGBUS.  Raise `OSError`, e.g. for a full disk.
    """
    end = os.fstat(fd).st_size
    while end < size:
        end += os.pwrite(fd, bytes(size - end), end)


class OwnerFile:
    """Another store's file of start marks, as its neighbours see it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._fd: int | None = None

    def take_over(self) -> bool:
        """Return whether the owner is dead; then this process holds its lock until `close`."""
        try:
            fd = os.open(self._path, os.O_RDWR | os.O_CLOEXEC)
        except OSError:
            return False
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(fd)
            return False
        if not os.fstat(fd).st_nlink:
            os.close(fd)  # another process buried it between open and lock
            return False
        self._fd = fd
        return True

    def marks(self) -> set[tuple[int, int]] | None:
        """Return the (claim, seq) that were started; None when that is not known: no file, or another boot."""
        try:
            content = self._path.read_bytes()
        except OSError:
            return None
        if len(content) < _HEADER or content[:_HEADER].rstrip(b"\0") != boot_id():
            return None
        whole = (len(content) - _HEADER) // _SLOT.size * _SLOT.size
        return {mark for mark in _SLOT.iter_unpack(content[_HEADER : _HEADER + whole]) if mark[0]}

    def close(self, *, remove: bool) -> None:
        """Let go of the lock; ``remove`` the file once all that its owner had leased was returned."""
        if remove:
            self._path.unlink(missing_ok=True)
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None
