"""What managers promise from import to exit: nothing happens unasked, and everything works where it is asked for."""

from __future__ import annotations

import asyncio
import importlib
import os
import subprocess
import sys
import threading
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from fastapi import FastAPI

from brokerkit import AsyncManager, ConfigurationError, Group, Manager, Message, Topic
from brokerkit.testing import eventually, eventually_sync

if TYPE_CHECKING:
    from decimal import Decimal as OnlyForTheTypeChecker


@pytest.fixture
def store() -> str:
    """The URL of an empty store that all managers of one test share."""
    return f"memory://{uuid.uuid4().hex}"


# --- sending before anybody listens ---


async def test_send_before_any_group_exists(store: str) -> None:
    async with AsyncManager(store) as sender:
        message_id = await sender.send("early", {"n": 1})

    async with AsyncManager(store) as receiver:
        latest = Topic("early", groups=["from-now-on"])
        earliest = Topic("early", groups=[Group("from-the-start", start="earliest")])
        async with receiver.consume(latest, group="from-now-on") as deliveries:
            assert await deliveries.receive(0.05) is None
        async with receiver.consume(earliest, group="from-the-start") as deliveries:
            delivery = await deliveries.receive(10)
            assert delivery is not None and delivery.message.message_id == message_id
            await delivery.ack()


# --- import, connect, start ---

HANDLERS = """
from brokerkit import Manager

manager = Manager({url!r})
seen = []

@manager.handler("jobs", group="workers")
def handle(job: int) -> None:
    seen.append(job)
"""


def test_lifecycle_importing_handlers_consumes_nothing(
    store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"handlers_{uuid.uuid4().hex}"
    (tmp_path / f"{name}.py").write_text(HANDLERS.format(url=store))
    monkeypatch.syspath_prepend(str(tmp_path))
    threads = set(threading.enumerate())
    with Manager(store) as other:
        other.admin.declare("jobs", "workers")
        other.send("jobs", 7)

        during = threading.active_count()
        app = importlib.import_module(name)
        assert threading.active_count() == during
        assert not app.manager.is_connected

        with app.manager:
            app.manager.send("jobs", 8)
            status = other.monitor.stats("jobs", "workers")
            assert (status.ready, status.unsettled, app.seen) == (2, 0, [])

            app.manager.start()
            eventually_sync(lambda: sorted(app.seen) == [7, 8], what="start() runs the handlers")

        other.send("jobs", 9)
        assert other.monitor.stats("jobs", "workers").ready == 1
    assert sorted(app.seen) == [7, 8]
    eventually_sync(lambda: set(threading.enumerate()) <= threads, what="all threads ended")


async def test_stop_ends_the_handlers_and_start_begins_again(store: str) -> None:
    seen: list[int] = []
    async with AsyncManager(store) as manager:

        @manager.handler("jobs", group="workers")
        async def handle(job: int) -> None:
            seen.append(job)

        await manager.start()
        await manager.start()
        await manager.send("jobs", 1)
        await eventually(lambda: seen == [1])
        assert await manager.stop()
        assert await manager.stop()
        await manager.send("jobs", 2)
        assert (await manager.monitor.stats("jobs", "workers")).ready == 1
        await manager.start()
        await eventually(lambda: seen == [1, 2])


# --- use after fork ---

FORK = """
import os, sys
from brokerkit import Manager, Topic

topic = Topic("jobs", str, groups=["workers"])
manager = Manager({url!r})

def receive(count):
    found = []
    with manager.consume(topic) as deliveries:
        while len(found) < count:
            delivery = deliveries.receive(20)
            if delivery is None:
                break
            with delivery:
                found.append(delivery.payload(str))
        extra = deliveries.receive(0.05)
        if extra is not None:
            found.append("unexpected " + extra.payload(str))
    return sorted(found)

ids = [manager.send(topic, "parent before")]
there, here = os.pipe()
pid = os.fork()
if pid == 0:
    {child}
    manager.close()
    sys.exit(0)
_, status = os.waitpid(pid, 0)
if status:
    sys.exit("the child failed")
os.close(here)
from_child = os.read(there, 100).decode()
ids += [from_child, manager.send(topic, "parent after")]
print(receive({left}), len(set(ids)), flush=True)
manager.close()
"""


def run_forking(url: str, child: str, left: int) -> list[str]:
    script = FORK.format(url=url, child=child, left=left)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.splitlines()


needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")


@needs_fork
def test_use_after_fork_on_memory_gives_the_child_a_store_of_its_own(store: str) -> None:
    child = "os.write(here, manager.send(topic, 'child').encode()); print(receive(1), flush=True)"

    lines = run_forking(store, child, left=2)

    assert lines == ["['child']", "['parent after', 'parent before'] 3"]


@needs_fork
def test_use_after_fork_on_a_file_shares_it(tmp_path: Path) -> None:
    child = "os.write(here, manager.send(topic, 'child').encode()); print('sent', flush=True)"

    lines = run_forking(f"sqlite:///{tmp_path}/fork.db", child, left=3)

    assert lines == ["sent", "['child', 'parent after', 'parent before'] 3"]


@needs_fork
def test_a_forked_child_that_does_not_use_the_manager_ends_quietly_and_leaves_the_parent_alone(tmp_path: Path) -> None:
    child = "os.write(here, b'-')"

    lines = run_forking(f"sqlite:///{tmp_path}/fork.db", child, left=2)

    assert lines == ["['parent after', 'parent before'] 3"]


@needs_fork
def test_a_forked_child_may_end_without_closing(tmp_path: Path) -> None:
    child = "os.write(here, manager.send(topic, 'child').encode()); sys.exit(0)"

    lines = run_forking(f"sqlite:///{tmp_path}/fork.db", child, left=3)

    assert lines == ["['child', 'parent after', 'parent before'] 3"]


# --- event loops ---

#: As an application has it: made at import, used by each test on a loop of its own, closed by none.
of_the_module = AsyncManager(f"memory://{uuid.uuid4().hex}")


async def use_the_manager_of_the_module(job: int) -> asyncio.AbstractEventLoop:
    topic = Topic("loops", int, groups=["g"])
    await of_the_module.send(topic, job)
    async with of_the_module.consume(topic) as deliveries:
        delivery = await deliveries.receive(10)
        assert delivery is not None and delivery.payload(int) == job
        await delivery.ack()
    return asyncio.get_running_loop()


def test_a_manager_of_a_module_works_on_the_loop_of_each_test() -> None:
    first = asyncio.run(use_the_manager_of_the_module(1))
    second = asyncio.run(use_the_manager_of_the_module(2))

    assert first is not second
    assert first.is_closed() and second.is_closed()


def test_a_loop_that_was_closed_with_running_handlers_can_be_followed_by_another(store: str) -> None:
    manager = AsyncManager(store)
    seen: list[int] = []
    manager.add_handler("jobs", lambda job: seen.append(job), group="g")

    async def once(job: int) -> None:
        await manager.start()
        await manager.send("jobs", job)
        await eventually(lambda: job in seen)

    before = set(threading.enumerate())
    asyncio.run(once(1))
    asyncio.run(once(2))
    asyncio.run(manager.aclose())

    assert seen == [1, 2]
    eventually_sync(lambda: set(threading.enumerate()) <= before, what="the threads of both loops ended")


def test_a_loop_ends_though_an_async_handler_runs_and_nobody_closed_the_manager(store: str) -> None:
    manager = AsyncManager(store)
    cancelled: list[bool] = []

    @manager.handler("jobs", group="g")
    async def hang(body: bytes) -> None:
        began.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.append(True)
            raise

    began = asyncio.Event()

    async def main() -> None:
        await manager.start()
        await manager.send("jobs", b"")
        await began.wait()

    thread = threading.Thread(target=asyncio.run, args=(main(),), daemon=True)
    thread.start()
    thread.join(20)

    assert not thread.is_alive()
    assert cancelled == [True]
    asyncio.run(manager.aclose())


async def test_a_second_loop_at_the_same_time_is_refused(store: str) -> None:
    async with AsyncManager(store) as manager:

        def elsewhere() -> str:
            return asyncio.run(manager.send("jobs", b""))

        with pytest.raises(RuntimeError, match="another event loop"):
            await asyncio.to_thread(elsewhere)


# --- several managers ---


async def test_two_managers_on_two_backends_in_one_process(store: str, tmp_path: Path) -> None:
    topic = Topic("jobs", str, groups=["workers"])
    memory, file = AsyncManager(store, name="memory"), AsyncManager(f"sqlite:///{tmp_path}/two.db", name="file")
    seen: list[tuple[str, str]] = []

    @memory.handler(topic)
    async def hand_over(job: str) -> None:
        seen.append(("memory", job))
        await file.send(topic, job + " handed over")

    @file.handler(topic)
    def take_over(job: str) -> None:
        seen.append(("file", job))

    async with memory, file:
        await memory.start()
        await file.start()
        await memory.send(topic, "one")
        await file.send(topic, "two")
        await eventually(lambda: len(seen) == 3)

    assert sorted(seen) == [("file", "one handed over"), ("file", "two"), ("memory", "one")]
    assert (tmp_path / "two.db").exists()


# --- FastAPI ---


async def test_fastapi_lifespan(store: str) -> None:
    orders = Topic("orders", dict[str, int], groups=["billing"])
    mq = AsyncManager(store)
    billed: list[int] = []

    @mq.handler(orders)
    async def bill(order: dict[str, int]) -> None:
        billed.append(order["id"])

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with mq:
            await mq.start()
            yield

    app = FastAPI(lifespan=lifespan)

    @app.post("/orders/{number}")
    async def create(number: int) -> str:
        return await mq.send(orders, {"id": number}, key=str(number))

    for number in (1, 2):
        # httpx leaves the lifespan to the server, so it is entered here, twice in sequence.
        async with app.router.lifespan_context(app):
            transport = httpx.ASGITransport(app=app)
            async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
                response = await client.post(f"/orders/{number}")
            assert response.status_code == 200 and response.json()
            await eventually(partial(billed.__contains__, number))
        assert not mq.is_connected

    assert billed == [1, 2]


# --- handlers that cannot work ---


class NothingPydanticKnows:
    """No way leads from a body to one of these."""


def unresolvable(job: OnlyForTheTypeChecker) -> None: ...


def impossible(job: NothingPydanticKnows) -> None: ...


def no_parameter() -> None: ...


def keyword_only(job: int, *, factor: int) -> None: ...


def two_payloads(job: int, other: int) -> None: ...


BAD_HANDLERS: list[tuple[Callable[..., Any], str, str]] = [
    (unresolvable, "OnlyForTheTypeChecker", "importable"),
    (impossible, "'job'", "NothingPydanticKnows"),
    (no_parameter, "no parameter", "the payload"),
    (keyword_only, "'factor'", "passed by position"),
    (two_payloads, "'other'", "annotated Message or Delivery"),
]
each_bad_handler = pytest.mark.parametrize(
    ("handler", "where", "cure"), BAD_HANDLERS, ids=[handler.__name__ for handler, _, _ in BAD_HANDLERS]
)


@each_bad_handler
async def test_handlers_with_bad_annotations_are_refused_at_start(
    handler: Callable[..., Any], where: str, cure: str, store: str
) -> None:
    manager = AsyncManager(store)
    manager.add_handler("jobs", handler, group="g")
    try:
        with pytest.raises(ConfigurationError) as refused:
            await manager.start()
    finally:
        await manager.aclose()

    text = str(refused.value)
    assert handler.__name__ in text and where in text and cure in text


@each_bad_handler
def test_handlers_with_bad_annotations_are_refused_where_they_are_added_to_a_running_manager(
    handler: Callable[..., Any], where: str, cure: str, store: str
) -> None:
    with Manager(store) as manager:
        manager.start()
        with pytest.raises(ConfigurationError) as refused:
            manager.add_handler("jobs", handler, group="g")
        assert handler.__name__ in str(refused.value) and where in str(refused.value)
        assert manager.specs == []


def handle_one(job: int) -> None: ...


def handle_other(job: int, message: Message) -> None: ...


async def refusal_at_start(manager: AsyncManager) -> str:
    try:
        with pytest.raises(ConfigurationError) as refused:
            await manager.start()
    finally:
        await manager.aclose()
    return str(refused.value)


def test_two_handlers_on_one_topic_group_and_type_are_refused(store: str) -> None:
    manager = AsyncManager(store)
    manager.add_handler("jobs", handle_one, group="g", type="a")
    manager.add_handler("jobs", handle_other, group="g", type="b")

    with pytest.raises(ConfigurationError) as refused:
        manager.add_handler("jobs", handle_other, group="g", type="a")

    for part in ("'jobs'", "'g'", "'a'", "handle_one", "handle_other", "different types or groups"):
        assert part in str(refused.value)


async def test_two_handlers_on_one_group_are_refused_even_if_only_one_names_the_group(store: str) -> None:
    manager = AsyncManager(store)
    topic = Topic("jobs", int, groups=["only"])
    manager.add_handler(topic, handle_one)
    manager.add_handler(topic, handle_other, group="only")

    text = await refusal_at_start(manager)

    for part in ("'jobs'", "'only'", "handle_one", "handle_other"):
        assert part in text


async def test_two_filters_on_one_group_are_refused(store: str) -> None:
    manager = AsyncManager(store)
    manager.add_handler("jobs", handle_one, group="g", type="a", tag="red")
    manager.add_handler("jobs", handle_other, group="g", type="b", tag="blue")

    text = await refusal_at_start(manager)

    for part in ("'jobs'", "'g'", "'red'", "'blue'", "must agree"):
        assert part in text


async def test_an_unpicklable_process_handler_is_refused(store: str) -> None:
    def local(job: int) -> None: ...

    manager = AsyncManager(store)
    manager.add_handler("jobs", local, group="g", executor="process")

    text = await refusal_at_start(manager)

    assert "local" in text and "process" in text and "module" in text


async def test_a_handler_without_a_group_is_refused_when_it_is_not_clear_which(store: str) -> None:
    manager = AsyncManager(store)
    manager.add_handler(Topic("jobs", int, groups=["a", "b"]), handle_one)

    text = await refusal_at_start(manager)

    assert "'jobs'" in text and "group=" in text and "a, b" in text
