"""Ask a worker and wait for its answer.

What the handler returns is the reply.  Many requests of a process share one inbox.  A handler that gives up is a
`RemoteError` here; no reply in time is a `ReplyTimeout`, and the late reply is dropped.

    python -m examples.request_reply

Needs: INBOX

Prints:

    squares: 0 1 4 9 16
    refused: negative numbers are not squared here
    no answer within 1 s
"""

from __future__ import annotations

import asyncio

from brokerkit import AsyncManager, Reject, RemoteError, ReplyTimeout, Topic

squares = Topic("request.squares", int, groups=["math"])
riddles = Topic("request.riddles", str, groups=["sphinx"])
mq = AsyncManager()
nobody_waits_any_more = asyncio.Event()


@mq.handler(squares)
async def square(number: int) -> int:
    if number < 0:
        raise Reject("negative numbers are not squared here")
    return number * number


@mq.handler(riddles)
async def think(riddle: str) -> str:
    await nobody_waits_any_more.wait()
    return "man"


async def main() -> None:
    async with mq:
        await mq.start()
        answers = await asyncio.gather(*(mq.request(squares, number, reply=int) for number in range(5)))
        print("squares:", *answers)
        try:
            await mq.request(squares, -1, reply=int, timeout=30)
        except RemoteError as error:
            print("refused:", error.message)
        try:
            await mq.request(riddles, "What walks on four feet in the morning?", reply=str, timeout=1)
        except ReplyTimeout:
            print("no answer within 1 s")
        nobody_waits_any_more.set()
        await mq.admin.discard(squares, "math")


if __name__ == "__main__":
    asyncio.run(main())
