"""The embedded broker on a file against SqliteHuey and persist-queue's SQLiteAckQueue."""

from __future__ import annotations

from benchmarks import peers
from benchmarks.measure import Row, interleave
from benchmarks.workload import BODY, concurrent, handled, lone_sends, many, on_file

__all__ = ["against_peers"]


def against_peers(rounds: int, scale: float) -> list[Row]:
    """Full durability and normal durability, each against the faster peer of its kind."""
    few, lots = max(200, int(1_500 * scale)), max(2_000, int(20_000 * scale))
    found = interleave(
        rounds,
        {
            "huey fsync, sends": lambda: peers.huey_sends(few, BODY, fsync=True),
            "persist-queue, sends": lambda: peers.persistqueue_sends(few, BODY),
            "brokerkit full, send_many": lambda: on_file(many(lots)),
            "brokerkit full, 100 concurrent send": lambda: on_file(concurrent(lots)),
            "brokerkit full, lone send": lambda: on_file(lone_sends(few)),
            "huey fsync, handled": lambda: peers.huey_handled(few, BODY, fsync=True),
            "persist-queue, handled": lambda: peers.persistqueue_handled(few, BODY),
            "brokerkit full, handled": lambda: on_file(handled(lots)),
            "huey no fsync, sends": lambda: peers.huey_sends(few * 4, BODY, fsync=False),
            "brokerkit normal, 100 concurrent send": lambda: on_file(concurrent(lots), "normal"),
            "huey no fsync, handled": lambda: peers.huey_handled(few * 4, BODY, fsync=False),
            "brokerkit normal, handled": lambda: on_file(handled(lots), "normal"),
        },
    )
    sends = max(found["huey fsync, sends"], found["persist-queue, sends"])
    handles = max(found["huey fsync, handled"], found["persist-queue, handled"])

    def ratio(what: str, name: str, peer: float, target: float) -> Row:
        return Row(what, found[name] / peer, "x", target, note=f"{found[name]:,.0f}/s against {peer:,.0f}/s")

    return [
        ratio("send_many", "brokerkit full, send_many", sends, 15),
        ratio("100 concurrent send", "brokerkit full, 100 concurrent send", sends, 8),
        ratio("handled by a worker", "brokerkit full, handled", handles, 10),
        ratio("lone await send, against huey", "brokerkit full, lone send", found["huey fsync, sends"], 0.8),
        ratio("normal: sends", "brokerkit normal, 100 concurrent send", found["huey no fsync, sends"], 1.5),
        ratio("normal: handled", "brokerkit normal, handled", found["huey no fsync, handled"], 3),
    ]
