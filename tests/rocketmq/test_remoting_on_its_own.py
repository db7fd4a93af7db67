"""The protocol layer without brokerkit, as docs/rocketmq.md shows it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from brokerkit.testing.deadlines import eventually_sync
from brokerkit.testing.services.rocketmq import RocketMQControl
from tests.rocketmq.clients import LONG, a_name
from tests.test_docs import file_block

#: Whatever would import brokerkit fails.
_ALONE = "import runpy, sys; sys.modules['brokerkit'] = None; runpy.run_path('letters.py', run_name='__main__')"


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    (folder / "letters.py").write_text(file_block("rocketmq.md", "letters.py"), encoding="utf-8")
    return subprocess.run(
        [sys.executable, "-c", _ALONE, *arguments], cwd=folder, capture_output=True, text=True, timeout=240, check=False
    )


def test_the_program_of_the_page_sends_and_reads_without_brokerkit(rocketmq: RocketMQControl, tmp_path: Path) -> None:
    topic, name_server = a_name("letters_"), rocketmq.address.name_servers[0]
    rocketmq.create_topic(topic, queues=2)

    def has_printed() -> bool:
        done = run(tmp_path, name_server, topic, "Guten Tag")
        assert (done.returncode, done.stderr) == (0, "")
        # What was stored a moment ago may have no place in its queue yet.
        return done.stdout.startswith("0 0 first Guten Tag\n")

    eventually_sync(has_printed, within=LONG, what="the message read")


def test_the_program_of_the_page_says_what_the_server_refused(rocketmq: RocketMQControl, tmp_path: Path) -> None:
    done = run(tmp_path, rocketmq.address.name_servers[0], a_name("nothing_"), "?")

    assert done.returncode == 1
    assert "refused: 17" in done.stderr
