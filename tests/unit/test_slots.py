from __future__ import annotations

import asyncio

from brokerkit.clock import SystemClock
from brokerkit.slots import Slots
from brokerkit.spi import Inbound
from brokerkit.testing import eventually


class Bench:
    """Slots whose work notes its task and waits at a gate that may be shut."""

    def __init__(self, concurrency: int) -> None:
        self.gate = asyncio.Event()
        self.gate.set()
        self.tasks: list[asyncio.Task[None] | None] = []
        self.done: list[Inbound] = []
        self.slots = Slots(
            "h", concurrency, SystemClock(), work=self._work, failed=self._failed, after=self.done.append
        )

    async def _work(self, inbound: Inbound) -> None:
        self.tasks.append(asyncio.current_task())
        await self.gate.wait()

    async def _failed(self, inbound: Inbound, error: BaseException) -> None:
        pass

    def submit(self, count: int) -> None:
        for _ in range(count):
            self.slots.submit(Inbound("t", "g", b"", None))


async def test_handlers_that_wait_run_at_once_as_many_as_there_are_slots() -> None:
    bench = Bench(50)
    bench.gate.clear()
    bench.submit(80)

    await eventually(lambda: len(bench.slots.running) == 50, 10, "all slots work")
    bench.gate.set()
    await eventually(lambda: len(bench.done) == 80, 10, "all is done")

    assert len(set(bench.tasks)) == 50
    await bench.slots.cancel()


async def test_handlers_that_never_wait_need_few_slots_of_many() -> None:
    bench = Bench(100)
    for _ in range(10):
        bench.submit(32)
        await eventually(lambda: not bench.slots.queue, 10, "all is taken")

    assert len(bench.done) == 320 and len(set(bench.tasks)) < 10
    await bench.slots.cancel()


async def test_a_slot_that_is_cancelled_when_it_was_just_woken_leaves_its_delivery_to_another() -> None:
    bench = Bench(2)
    bench.submit(1)
    await eventually(lambda: len(bench.done) == 1, 10, "the first is done")
    bench.submit(1)
    task = bench.tasks[0]
    assert task is not None
    task.cancel()

    await eventually(lambda: len(bench.done) == 2, 10, "the second is done")
    await bench.slots.cancel()


async def test_nothing_is_started_after_the_end() -> None:
    bench = Bench(10)
    bench.submit(20)
    await bench.slots.cancel()
    bench.submit(1)
    for _ in range(5):
        await asyncio.sleep(0)

    assert not bench.tasks and len(bench.slots.take_back()) == 21
