"""Who reads which queue: complete, disjoint, and exactly what Java members compute."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from brokerkit_rocketmq.assignment import averagely, owners

MEMBERS = st.lists(st.text("abc.@#0123456789", min_size=1, max_size=6), min_size=1, max_size=12, unique=True)
QUEUES = st.integers(0, 40).map(lambda count: list(range(count)))


def java(member: str, members: list[str], queues: list[int]) -> list[int]:
    """AllocateMessageQueueAveragely.allocate of rocketmq 4.9.4, line by line."""
    members = sorted(members)
    if member not in members:
        return []
    index = members.index(member)
    mod = len(queues) % len(members)
    if len(queues) <= len(members):
        average = 1
    elif mod > 0 and index < mod:
        average = len(queues) // len(members) + 1
    else:
        average = len(queues) // len(members)
    start = index * average if mod > 0 and index < mod else index * average + mod
    span = min(average, len(queues) - start)
    return [queues[(start + i) % len(queues)] for i in range(span)]


@given(members=MEMBERS, queues=QUEUES)
def test_every_member_gets_what_java_gives_it(members: list[str], queues: list[int]) -> None:
    for member in members:
        assert averagely(member, members, queues) == java(member, members, queues)


@given(members=MEMBERS, queues=QUEUES)
def test_every_queue_has_exactly_one_reader(members: list[str], queues: list[int]) -> None:
    shares = [averagely(member, members, queues) for member in members]
    assert sorted(queue for share in shares for queue in share) == queues
    sizes = sorted(map(len, shares))
    assert sizes[-1] - sizes[0] <= 1


@given(members=MEMBERS, queues=QUEUES)
def test_owners_are_the_shares_the_other_way_round(members: list[str], queues: list[int]) -> None:
    assert owners(members, queues) == {
        queue: member for member in members for queue in averagely(member, members, queues)
    }


@given(members=MEMBERS, queues=QUEUES)
def test_neither_order_nor_repetition_of_the_members_matters(members: list[str], queues: list[int]) -> None:
    for member in members:
        assert averagely(member, [*reversed(members), *members], queues) == averagely(member, members, queues)


def test_who_is_not_a_member_reads_nothing() -> None:
    assert averagely("me", ["other"], [1, 2]) == []
    assert averagely("me", [], [1, 2]) == []
    assert owners([], [1, 2]) == {}
