from __future__ import annotations

import threading

import pytest

from brokerkit.testing.ledger import Ledger


def test_lost_is_what_was_confirmed_and_neither_handled_nor_dead() -> None:
    ledger = Ledger()
    for name in ("handled", "dead", "lost"):
        ledger.confirmed(name)
    ledger.sent("never confirmed")
    ledger.handled("handled")
    ledger.dead("dead", "rejected")
    assert ledger.lost == {"lost"}
    assert ledger.unconfirmed == {"never confirmed"}
    assert not ledger.settled
    with pytest.raises(AssertionError, match=r"(?s)1 confirmed messages were lost.*lost +1  lost"):
        ledger.assert_nothing_lost()
    ledger.handled("lost")
    ledger.assert_nothing_lost()
    assert ledger.settled


def test_doubled_counts_the_runs_and_keeps_their_attempts() -> None:
    ledger = Ledger()
    for name, attempt in (("a", 1), ("b", 1), ("b", 2), ("b", 2)):
        ledger.confirmed(name)
        ledger.handled(name, attempt)
    assert ledger.doubled == {"b": 3}
    assert ledger.handled_ids == {"a": (1,), "b": (1, 2, 2)}
    with pytest.raises(AssertionError, match=r"(?s)1 messages were handled more than once.*b x3"):
        ledger.assert_nothing_doubled()


def test_what_nobody_sent_is_unknown() -> None:
    ledger = Ledger()
    ledger.sent("a")
    ledger.handled("a")
    ledger.assert_nothing_unknown()
    ledger.handled("ghost")
    with pytest.raises(AssertionError, match=r"(?s)nobody sent.*ghost"):
        ledger.assert_nothing_unknown()


def test_merge_adds_up_and_leaves_the_other_alone() -> None:
    one, other = Ledger("one"), Ledger("other")
    one.confirmed("a")
    one.confirmed("c")
    one.handled("a")
    other.confirmed("b")
    other.handled("a", 2)
    other.handled("b")
    other.dead("c", "poison")
    assert one.merge(other) is one
    assert one.doubled == {"a": 2}
    assert one.lost == frozenset()
    assert one.dead_ids == {"c": "poison"}
    assert other.handled_ids == {"a": (2,), "b": (1,)}


def test_events_of_worker_processes_are_written_down() -> None:
    ledger = Ledger()
    ledger.record(
        [
            {"pid": 1, "ledger": "sent", "id": "a"},
            {"pid": 1, "ledger": "confirmed", "id": "b"},
            {"pid": 2, "ledger": "handled", "id": "b", "attempt": 3},
            {"pid": 2, "ledger": "dead", "id": "a", "reason": "worker-crash"},
            {"pid": 2, "other": "event"},
        ]
    )
    assert ledger.sent_ids == {"a", "b"}
    assert ledger.handled_ids == {"b": (3,)}
    assert ledger.dead_ids == {"a": "worker-crash"}
    with pytest.raises(ValueError, match="known verb"):
        ledger.record([{"ledger": "eaten", "id": "a"}])


def test_the_text_shows_every_number_and_names_a_few_ids() -> None:
    ledger = Ledger("test_broker_killed")
    for number in range(1200):
        ledger.confirmed(f"m{number:04}")
    for number in range(1180):
        ledger.handled(f"m{number:04}")
    ledger.handled("m0000", 2)
    ledger.dead("m1180", "worker-crash")
    ledger.sent("late")
    assert str(ledger).splitlines() == [
        "test_broker_killed:",
        "  sent            1,201",
        "  confirmed       1,200",
        "  unconfirmed         1  late",
        "  handled         1,180  in 1181 runs",
        "  dead                1  m1180 (worker-crash)",
        "  lost               19  " + ", ".join(f"m{n}" for n in range(1181, 1191)) + " and 9 more",
        "  doubled             1  m0000 x2",
    ]


def test_threads_write_at_once_without_losing_an_entry() -> None:
    ledger = Ledger()

    def write(worker: int) -> None:
        for number in range(500):
            ledger.confirmed(f"{worker}-{number}")
            ledger.handled("shared")

    threads = [threading.Thread(target=write, args=(worker,)) for worker in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(ledger.confirmed_ids) == 2000
    assert ledger.doubled == {"shared": 2000}
