"""One service for several processes: who starts it, who ends it, and what happens when the starter dies."""

from __future__ import annotations

import select
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

#: Seconds of silence that count as silence.
QUIET = 0.3

_USER = """
import sys
from pathlib import Path
from brokerkit.testing.services.sharing import SharedService, share
me = sys.argv[2]

def start():
    return SharedService(f"started by {me}", lambda: print("closed", flush=True))

with share(Path(sys.argv[1]), "broker", start) as description:
    print(description, flush=True)
    sys.stdin.readline()
    print("leaving", flush=True)
"""


class User:
    """Another process that shares the service."""

    def __init__(self, directory: Path, name: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", _USER, str(directory), name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def says(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def is_silent(self) -> bool:
        assert self.process.stdout is not None
        return not select.select([self.process.stdout], [], [], QUIET)[0]

    def leave(self) -> str:
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return self.says()


@contextmanager
def _ended(user: User) -> Iterator[User]:
    with user.process:
        try:
            yield user
        finally:
            user.process.kill()


def test_the_first_process_starts_it_and_ends_it_after_all_others_left(tmp_path: Path) -> None:
    with _ended(User(tmp_path, "a")) as a:
        assert a.says() == "started by a"
        with _ended(User(tmp_path, "b")) as b, _ended(User(tmp_path, "c")) as c:
            assert (b.says(), c.says()) == ("started by a", "started by a")
            assert a.leave() == "leaving"
            assert b.leave() == "leaving"
            assert b.process.wait() == 0
            assert a.is_silent()
            c.process.kill()  # a death counts as leaving
        assert a.says() == "closed"
        assert a.process.wait() == 0
    with _ended(User(tmp_path, "d")) as d:
        assert d.says() == "started by d"


def test_the_next_process_starts_another_one_when_the_starter_died(tmp_path: Path) -> None:
    with _ended(User(tmp_path, "a")) as a:
        assert a.says() == "started by a"
        a.process.kill()
        a.process.wait()
    with _ended(User(tmp_path, "b")) as b, _ended(User(tmp_path, "c")) as c:
        starters = {b.says(), c.says()}
        assert len(starters) == 1 and starters < {"started by b", "started by c"}
