from __future__ import annotations

import copy
import dataclasses
import os
import pickle
import re
import subprocess
import sys
import threading
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from brokerkit.errors import DecodeError, PayloadError
from brokerkit.message import Message, MessageIds
from brokerkit.topic import Topic


def test_a_message_cannot_be_changed() -> None:
    message = Message(body=b"x")
    for name in (field.name for field in dataclasses.fields(Message)):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(message, name, None)
    with pytest.raises((AttributeError, TypeError)):
        message.colour = "red"  # type: ignore[attr-defined]


def test_messages_do_not_share_their_headers() -> None:
    assert Message(body=b"").headers is not Message(body=b"").headers


@given(st.binary(), st.dictionaries(st.text(), st.text(), max_size=3))
def test_a_copy_is_equal(body: bytes, headers: dict[str, str]) -> None:
    message = Message(body=body, headers=headers, key="k", due=1.5)
    assert pickle.loads(pickle.dumps(message)) == message == copy.deepcopy(message)
    assert dataclasses.replace(message, topic="other") != message


@pytest.mark.parametrize(
    ("payload", "type_", "content_type"),
    [
        (b"\x00\xff", bytes, "application/octet-stream"),
        ("é", str, "text/plain"),
        ({"a": [1]}, Any, "application/json"),
        ([1, 2], list[int], "application/json"),
    ],
)
def test_a_payload_comes_back_in_its_type(payload: object, type_: Any, content_type: str) -> None:
    message = Message.of(payload, key="k")
    assert (message.payload(type_), message.content_type, message.key) == (payload, content_type, "k")
    assert Message.of(payload, content_type="x/y").content_type == "x/y"


def test_a_payload_without_a_type_is_decoded_json() -> None:
    assert Message(body=b'{"a": 1}').payload() == {"a": 1}
    with pytest.raises(DecodeError):
        Message(body=b"{").payload()
    with pytest.raises(DecodeError):
        Message(body=b"{").payload(list[int])
    with pytest.raises(PayloadError):
        Message.of(object())


def test_ids_have_their_documented_form() -> None:
    ids = MessageIds()
    made = [ids() for _ in range(20)]
    assert all(re.fullmatch(r"[0-9a-f]{24}-[0-9a-f]+", one) for one in made)
    assert len({one[:24] for one in made}) == 1 and MessageIds()()[:24] != made[0][:24]


def test_ids_are_unique_across_threads_that_run_while_the_prefix_is_renewed() -> None:
    ids = MessageIds()
    made: list[list[str]] = [[] for _ in range(4)]
    done = threading.Event()

    def work(mine: list[str]) -> None:
        while not done.is_set():
            mine.append(ids())

    threads = [threading.Thread(target=work, args=(mine,)) for mine in made]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for thread in threads:
            thread.start()
        for _ in range(3000):
            ids.renew()
    finally:
        done.set()
        for thread in threads:
            thread.join()
        sys.setswitchinterval(interval)
    everything = [one for mine in made for one in mine]
    assert len(everything) > 100 and len(set(everything)) == len(everything)


PRELOADED = """
import asyncio, os
from brokerkit import AsyncManager

manager = AsyncManager("memory://", settings={})

async def send():
    async with manager:
        return await manager.send("topic", b"x")

if USED_BEFORE:
    print(asyncio.run(send()), flush=True)
for _ in range(3):
    child = os.fork()
    if child == 0:
        print(asyncio.run(send()), flush=True)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
@pytest.mark.parametrize("used_before", [True, False])
def test_processes_that_were_forked_from_one_with_a_manager_make_different_ids(used_before: bool) -> None:
    program = PRELOADED.replace("USED_BEFORE", str(used_before))
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert run.returncode == 0, run.stderr
    ids = run.stdout.split()
    assert len(ids) == 3 + used_before and len({one[:24] for one in ids}) == len(ids), ids


def test_a_topic_is_taken_by_its_name() -> None:
    parcels = Topic("parcels", dict, groups=["carrier"])
    message = Message.of({"n": 1}, topic=parcels)
    assert message.topic == "parcels"
    assert message == Message.of({"n": 1}, topic="parcels")
    assert "topic_object" not in repr(message)
    again = pickle.loads(pickle.dumps(message))
    assert again == message
    assert again.topic_object is not None and [group.name for group in again.topic_object.groups] == ["carrier"]
