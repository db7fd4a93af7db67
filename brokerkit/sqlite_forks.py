"""`FORKS`: no connection to SQLite is carried over a fork.

SQLite remembers in memory which locks its process has on a file, and takes locks again only for the first connection
to that file.  The child of a fork inherits the memory and not the locks: it writes without any, the parent that closes
takes itself for the last one and deletes the log that the child goes on writing, and a transaction that was under way
in some thread holds its locks in the child for ever.  SQLite's advice is to close all connections before (section 2.6
of sqlite.org/howtocorrupt.html), and that is done here; who needs one afterwards opens it again.
"""

from __future__ import annotations

import os
import threading
import weakref
from typing import Protocol

from brokerkit.errors import Closed

__all__ = ["FORKS", "Forks", "Holder"]

#: Seconds that a fork waits for transactions to end.  They have limits of their own, which are shorter.
_PATIENCE = 30.0


class Holder(Protocol):
    """What has connections to SQLite.  It uses them only within ``with FORKS:``."""

    def let_go(self) -> None:
        """Close them, in any thread; called before a fork, while nobody uses them."""

    def abandon(self) -> None:
        """Called in the child, which inherited this object from its parent: give up what is not the child's."""


class Forks:
    """Lets threads use SQLite at the same time, but none while the process forks.

    ``with FORKS:`` is to be the innermost of all waits, and not nested: a fork waits for it.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        #: Threads that use SQLite now.
        self._users = 0
        self._forking = False
        #: Whether connections are open that the fork under way carries over.
        self._carrying = False
        #: Whether that was so for the fork that made this process, or one before it.
        self._torn = False
        self._holders: weakref.WeakSet[Holder] = weakref.WeakSet()
        self._hooked = False

    def __enter__(self) -> None:
        with self._lock:
            while self._forking:
                self._changed.wait()
            self._users += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._users -= 1
            if self._forking:
                self._changed.notify_all()

    def add(self, holder: Holder) -> None:
        """Ask ``holder`` to let go before each fork, for as long as it lives."""
        with self._lock:
            self._holders.add(holder)
            if self._hooked or not hasattr(os, "register_at_fork"):
                return
            # Once for the process: a hook cannot be taken back.
            self._hooked = True
        os.register_at_fork(before=self._before, after_in_parent=self._in_parent, after_in_child=self._in_child)

    def discard(self, holder: Holder) -> None:
        """Ask ``holder`` no more."""
        with self._lock:
            self._holders.discard(holder)

    def check(self) -> None:
        """Raise `Closed` where no file can be opened safely: the parent forked in the middle of a transaction."""
        if self._torn:
            raise Closed(
                f"the parent process forked while it had waited {_PATIENCE:g} s for the end of a transaction: "
                "a child that was made so cannot use SQLite; make it again"
            )

    def _before(self) -> None:
        with self._lock:
            while self._forking:
                # Another thread forks, too.
                self._changed.wait()
            self._forking = self._carrying = True
            if not self._changed.wait_for(lambda: not self._users, _PATIENCE):
                return
            holders = tuple(self._holders)
        for holder in holders:
            holder.let_go()
        self._carrying = False

    def _in_parent(self) -> None:
        with self._lock:
            self._forking = False
            self._changed.notify_all()

    def _in_child(self) -> None:
        # Other threads of the parent may have held it.
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._users = 0
        self._forking = False
        self._torn = self._torn or self._carrying
        for holder in tuple(self._holders):
            holder.abandon()
        self._holders.clear()


FORKS = Forks()
