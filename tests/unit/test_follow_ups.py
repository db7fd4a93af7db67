from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from brokerkit.envelope import PARENT, REPLY_ERROR
from brokerkit.follow_ups import FollowUps, dump, load
from brokerkit.message import Message
from brokerkit.results import Outcome
from brokerkit.spi import Inbound, Outbound, ToDead, ToGroup, ToInbox, ToTopic
from brokerkit.topic import Topic

from .rig import Rig
from .test_envelope import NOW, a_producer

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
optional = st.none() | texts
times = st.none() | st.floats(0, 4e9)
outbounds = st.builds(
    Outbound,
    destination=st.builds(ToTopic, texts)
    | st.builds(ToGroup, texts, texts)
    | st.builds(ToDead, texts, texts)
    | st.builds(ToInbox, texts),
    body=st.binary(max_size=20),
    message_id=texts,
    headers=st.dictionaries(texts, texts, max_size=3),
    due=times,
    key=optional,
    tag=optional,
    type=optional,
    content_type=optional,
    priority=st.integers(0, 9),
    timestamp=st.floats(0, 4e9),
    correlation_id=optional,
    reply_to=optional,
    ordered=st.booleans(),
    native=st.none() | st.dictionaries(texts, st.integers() | texts, max_size=2),
)


def as_fields(outbound: Outbound) -> dict[str, object]:
    values = {field.name: getattr(outbound, field.name) for field in dataclasses.fields(outbound)}
    values["native"] = values["native"] or None
    return values


@given(st.lists(outbounds, max_size=3))
def test_what_was_dumped_is_loaded_with_every_field(sent: list[Outbound]) -> None:
    data = dump(sent)
    assert (data is None) is (not sent)
    assert list(map(as_fields, load(data))) == list(map(as_fields, sent))


def an_inbound(**fields: object) -> Inbound:
    values: dict[str, object] = {"topic": "t", "group": "g", "body": b"", "message_id": "m1", **fields}
    return Inbound(**values)  # type: ignore[arg-type]


def test_a_reply_goes_to_the_asker_and_names_the_request() -> None:
    ups = FollowUps(a_producer())
    reply = ups.reply(an_inbound(reply_to="inbox", correlation_id="c1"), {"a": 1})
    assert (reply.destination, reply.correlation_id, reply.body) == (ToInbox("inbox"), "c1", b'{"a":1}')
    assert (reply.headers, reply.timestamp) == ({}, NOW)
    assert ups.reply(an_inbound(reply_to="inbox"), None).correlation_id == "m1"


@given(st.text(st.characters(), max_size=30) | st.just("x" * 100_000) | st.just("bad \ud800 text"))
def test_any_text_of_an_error_fits_the_header_of_a_reply(text: str) -> None:
    header = FollowUps(a_producer()).reply(an_inbound(reply_to="inbox"), None, text).headers[REPLY_ERROR]
    assert len(header) <= 1000
    assert header == text[:1000].encode("utf-8", "replace").decode()


async def test_without_a_reply_address_a_value_is_not_sent() -> None:
    ups = FollowUps(a_producer())
    assert await ups.of(an_inbound(), Outcome(reply=5, has_reply=True)) == []
    [reply] = await ups.of(an_inbound(reply_to="inbox"), Outcome())
    assert reply.body == b"null"


def test_a_parent_is_kept_when_the_handler_gave_one() -> None:
    outbound = a_producer().outbound("t", Message(body=b"", parent_id="p"), {})
    assert outbound.headers == {PARENT: "p"}


@pytest.mark.parametrize("as_name", [False, True])
async def test_a_follow_up_with_a_topic_is_stored_for_the_groups_of_that_topic(as_name: bool) -> None:
    parcels = Topic("parcels", dict, groups=["carrier"])
    async with Rig() as rig:

        @rig.manager.handler(Topic("orders", int, groups=["packing"]))
        async def pack(order: int) -> Message:
            return Message.of({"order": order}, topic=parcels.name if as_name else parcels)

        await rig.manager.start()
        await rig.manager.send("orders", 1)
        await rig.clock.advance(1)
        assert await rig.dead("orders", "packing") == []
        if as_name:
            # Nobody in this process said who wants it.
            assert "parcels" in rig.manager.topology and rig.manager.topology["parcels"].groups == {}
        else:
            assert (await rig.counts("parcels", "carrier"))[0] == 1
