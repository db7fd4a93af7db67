"""One question to a NameServer or a broker in RocketMQ's remoting protocol, as far as operating a test server needs it.

The frame is ``int32 length, int32 length of the header, header, body``; the header is JSON
(org.apache.rocketmq.remoting.protocol.RemotingCommand).
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import socket
import struct
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from brokerkit.errors import BrokerError, BrokerUnavailable

__all__ = ["Answer", "Login", "ask", "request"]

#: Seconds that an answer may take.
_TIMEOUT = 10.0

#: RocketMQ 4.9.4, the first to which a NameServer answers in standard JSON (MQVersion.Version).
_VERSION = 401


@dataclass(frozen=True, slots=True)
class Login:
    """Who asks, where the ACL is on."""

    access_key: str
    secret_key: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back; 0 is success (org.apache.rocketmq.remoting.protocol.ResponseCode)."""

    code: int
    remark: str
    fields: Mapping[str, str]
    body: bytes


def ask(
    address: str,
    code: int,
    fields: Mapping[str, str] | None = None,
    body: bytes = b"",
    *,
    login: Login | None = None,
    timeout: float = _TIMEOUT,
) -> Answer:
    """Send one request to "host:port" and return its answer; `BrokerUnavailable` when there is none."""
    sent = dict(fields or {})
    if login is not None:
        sent["AccessKey"] = login.access_key
        signed = "".join(sent[name] for name in sorted(sent)).encode() + body
        digest = hmac.digest(login.secret_key.encode(), signed, hashlib.sha1)
        sent["Signature"] = base64.b64encode(digest).decode()
    header = json.dumps(
        {"code": code, "language": "PYTHON", "version": _VERSION, "opaque": 1, "flag": 0, "extFields": sent}
    ).encode()
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host, int(port)), timeout=timeout) as sock:
            sock.sendall(struct.pack(">ii", 4 + len(header) + len(body), len(header)) + header + body)
            (length,) = struct.unpack(">i", _receive(sock, 4))
            return _parse(_receive(sock, length))
    except OSError as error:
        raise BrokerUnavailable(f"{address} does not answer request {code}: {error}") from error


def request(
    address: str,
    code: int,
    fields: Mapping[str, str] | None = None,
    body: bytes = b"",
    *,
    login: Login | None = None,
    allowed: Collection[int] = (),
) -> Answer:
    """Do what `ask` does, and raise `BrokerError` when the answer is neither success nor one of the ``allowed``."""
    answer = ask(address, code, fields, body, login=login)
    if answer.code != 0 and answer.code not in allowed:
        raise BrokerError(f"{address} refused request {code}: {answer.code} {answer.remark[:500]}")
    return answer


def _receive(sock: socket.socket, count: int) -> bytes:
    data = bytearray()
    while len(data) < count:
        chunk = sock.recv(count - len(data))
        if not chunk:
            raise ConnectionResetError("it closed the connection")
        data += chunk
    return bytes(data)


def _parse(frame: bytes) -> Answer:
    (word,) = struct.unpack_from(">i", frame)
    # The byte above the length is the kind of header; JSON is 0.
    if word >> 24:
        raise BrokerError(f"an answer with a header of kind {word >> 24}, not JSON")
    header = json.loads(frame[4 : 4 + word])
    return Answer(header["code"], header.get("remark") or "", header.get("extFields") or {}, frame[4 + word :])
