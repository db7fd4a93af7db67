"""A pause lasts through the restart of a consumer, and ends with the worker."""

from __future__ import annotations

from brokerkit import Message, Topic

from .rig import Rig

T = Topic("t", bytes, groups=["g"])


async def test_a_restart_of_the_consumer_keeps_its_pause_and_a_new_start_forgets_it() -> None:
    async with Rig() as rig:

        @rig.manager.handler(T)
        async def work(message: Message) -> None:
            rig.start_of(message)

        await rig.manager.start()
        await rig.manager.pause("t")
        worker = rig.manager._worker
        assert worker is not None
        assert await worker.restart("t", "g", 1.0)
        await rig.manager.send(T, b"1")
        await rig.clock.advance(10)
        assert (rig.bodies, worker.is_handling("t", "g")) == ([], False)

        await rig.manager.stop()
        await rig.manager.start()
        await rig.clock.advance(10)
        assert rig.bodies == [b"1"]
