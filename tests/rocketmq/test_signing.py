"""Signatures as ``AclClientRPCHook`` of acl-4.9.4.jar makes them."""

from __future__ import annotations

import pytest

from brokerkit_rocketmq.remoting.signing import Signer

UNICODE = {"b": "Tüx", "i": "KEYS\x01你好 \U0001f600\x02TAGS\x01x\x02", "a": "pg", "Z": "last?"}


@pytest.mark.parametrize(
    ("fields", "body", "signature"),
    [
        ({"topic": "T", "queueId": "3"}, b"", "1ylcv7GBYrDDJMQS9Tn4pTiRgFk="),
        ({"queueId": "3", "topic": "T"}, b"\x00\x01\x02\xffA", "8Mbjf/PfyKUkZOMNa9iGaaUumTk="),
        (UNICODE, "bodyé".encode(), "qJK9TrXRA8xKgDwDwrm/xgKzxpI="),
        ({}, b"", "tHfz9VlXcRZ9ZRSEN51g7ub3v9Y="),
    ],
)
def test_the_signature_is_javas(fields: dict[str, str], body: bytes, signature: str) -> None:
    signed = dict(fields)
    Signer("rmquser", "a-secret-key").sign(signed, body)
    assert signed == {**fields, "AccessKey": "rmquser", "Signature": signature}


def test_a_security_token_is_signed_too() -> None:
    fields = {"topic": "T", "queueId": "3"}
    Signer("rmquser", "a-secret-key", "a-token").sign(fields, b"")
    assert fields["SecurityToken"] == "a-token"
    assert fields["Signature"] == "gz+Kg9eawwlNIKgcE8+0Miifi1U="


def test_signing_again_gives_the_same_signature() -> None:
    signer, fields = Signer("rmquser", "a-secret-key"), {"topic": "T", "queueId": "3"}
    signer.sign(fields, b"")
    signer.sign(fields, b"")
    assert fields["Signature"] == "1ylcv7GBYrDDJMQS9Tn4pTiRgFk="


def test_the_flag_of_a_query_by_id_is_not_signed() -> None:
    fields = {"topic": "T", "queueId": "3", "_UNIQUE_KEY_QUERY": "true"}
    Signer("rmquser", "a-secret-key").sign(fields, b"")
    assert fields["Signature"] == "1ylcv7GBYrDDJMQS9Tn4pTiRgFk="


def test_half_of_a_surrogate_pair_is_signed_as_java_sends_it() -> None:
    with_half, with_mark = {"a": "x\ud800y"}, {"a": "x?y"}
    Signer("rmquser", "a-secret-key").sign(with_half, b"")
    Signer("rmquser", "a-secret-key").sign(with_mark, b"")
    assert with_half["Signature"] == with_mark["Signature"]


def test_a_signer_does_not_show_its_secrets() -> None:
    assert repr(Signer("rmquser", "a-secret-key", "a-token")) == "Signer(***)"
