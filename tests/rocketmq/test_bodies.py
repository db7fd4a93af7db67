from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from brokerkit_rocketmq.remoting.bodies import BadBody, parse_body

json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.text()
    | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)  # fmt: skip


@given(json_values)
def test_json_is_json(value: object) -> None:
    assert parse_body(json.dumps(value).encode()) == value


def test_no_body_says_nothing() -> None:
    assert parse_body(b"") is None
    assert parse_body(b" \n") is None


def test_the_cluster_of_5_5_with_bare_numbers_as_keys() -> None:
    body = (
        b'{"brokerAddrTable":{"broker-a":{"brokerAddrs":{0:"127.0.0.1:11911",1:"127.0.0.1:11921"},"brokerName":"broker-a",'
        b'"cluster":"DefaultCluster","enableActingMaster":false}},"clusterAddrTable":{"DefaultCluster":["broker-a"]}}'
    )

    found = parse_body(body)

    assert found["brokerAddrTable"]["broker-a"]["brokerAddrs"] == {"0": "127.0.0.1:11911", "1": "127.0.0.1:11921"}
    assert found["clusterAddrTable"] == {"DefaultCluster": ["broker-a"]}


def test_the_figures_of_a_group_with_queues_as_keys() -> None:
    body = (
        b'{"consumeTps":0.5,"offsetTable":{{"brokerName":"broker-a","queueId":0,"topic":"T"}:{"brokerOffset":12,'
        b'"consumerOffset":10,"lastTimestamp":1732300000123},{"topic":"T","queueId":1,"brokerName":"broker-a"}:'
        b'{"brokerOffset":7,"consumerOffset":-1,"lastTimestamp":0}}}'
    )

    found = parse_body(body)

    queues = {dict(key)["queueId"]: figures for key, figures in found["offsetTable"].items()}
    assert found["consumeTps"] == 0.5
    assert queues[0] == {"brokerOffset": 12, "consumerOffset": 10, "lastTimestamp": 1732300000123}
    assert queues[1]["consumerOffset"] == -1
    # The order of a key's names does not matter.
    assert (("brokerName", "broker-a"), ("queueId", 1), ("topic", "T")) in found["offsetTable"]


@pytest.mark.parametrize(
    ("body", "value"),
    [
        (b"{a:1}", {"a": 1}),
        (b'{1:"x",2:"y",}', {"1": "x", "2": "y"}),
        (b'{-5:12L,"b":1.5D,"c":2F}', {"-5": 12, "b": 1.5, "c": 2.0}),
        (b"[1,2,,3,{4:[]}]", [1, 2, 3, {"4": []}]),
        (b'{{"a":{"b":[1]}}:null}', {(("a", (("b", (1,)),)),): None}),
        (b'{0:"a\\"b\\u00e9\\n"}', {"0": 'a"b\u00e9\n'}),
        (b'{0:"tab\tinside"}', {"0": "tab\tinside"}),
        (b'{0:true,1:false,2:null,3:-1e3,4:"\xe5\xaf\xbc"}',
         {"0": True, "1": False, "2": None, "3": -1000.0, "4": "\u5bfc"}),
    ],
)  # fmt: skip
def test_what_fastjson_makes_of_java(body: bytes, value: object) -> None:
    assert parse_body(body) == value


@pytest.mark.parametrize(
    "body",
    [
        b"{", b"[", b'{"a"', b'{"a":', b"{a:1 b:2}", b"[1 2]", b'"', b'{0:"a}', b"{0:1}x", b"{0:-}", b"{0:abc}", b"}",
        b",", b"\xff\xfe", b'{0:"\\q"}', b'{0:"\\u12"}', b"{0:1", b"{:1}", b"[" * 100_000, b"{0:" * 100_000,
        b"{{" * 5_000, b"{0:" + b"9" * 10_000 + b"}", b'{0:"\\' + b"\\" * 1001,
    ],
    ids=lambda body: repr(body[:12]),
)  # fmt: skip
def test_what_is_no_json_is_said_to_be_none(body: bytes) -> None:
    with pytest.raises(BadBody):
        parse_body(body)


@given(st.text(alphabet='{}[],:"\\0123456789.-eaLu \n\u00e9'))
def test_any_text_is_parsed_or_refused(text: str) -> None:
    try:
        parse_body(text.encode())
    except BadBody:
        pass


@given(st.binary())
def test_any_bytes_are_parsed_or_refused(body: bytes) -> None:
    try:
        parse_body(body)
    except BadBody:
        pass
