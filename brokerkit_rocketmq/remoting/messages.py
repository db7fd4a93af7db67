"""Messages as brokers store and deliver them, and batches as producers send them.

``MessageDecoder`` of apache/rocketmq: V1 and V2 (topics of more than 127 bytes, 5.x), hosts of 4 or 16 bytes, and on
5.x messages whose body is a batch that the client takes apart.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable

from brokerkit_rocketmq.remoting.compression import COMPRESSED, decompress, kind_of
from brokerkit_rocketmq.remoting.ids import host_text, offset_id
from brokerkit_rocketmq.remoting.properties import parse_properties

__all__ = ["MAX_BODY", "BadMessages", "StoredMessage", "decode_messages", "encode_batch", "encode_member"]

#: Bytes that a compressed body may become: sixteen times what brokers store by default.
MAX_BODY = 64 * 1024 * 1024
#: Members that the packed messages of one answer may have together; they may take up `MAX_BODY` together.
_MOST_MEMBERS = 65_536

_V1, _V2 = -626843481, -626843477

_BORN_V6, _STORE_V6 = 16, 32
#: NEED_UNWRAP and INNER_BATCH: the body is a batch, and the client takes it apart.
_PACKED = 64 | 128

#: total, magic, crc, queue id, flag, queue offset, commit log offset, flags, born, born host, stored, store host,
#: reconsume times, prepared transaction, body size; by the two bits for IPv6.
_HEADS = {
    0: struct.Struct(">iiiiiqqiq8sq8siqi"),
    _BORN_V6: struct.Struct(">iiiiiqqiq20sq8siqi"),
    _STORE_V6: struct.Struct(">iiiiiqqiq8sq20siqi"),
    _BORN_V6 | _STORE_V6: struct.Struct(">iiiiiqqiq20sq20siqi"),
}
_U16 = struct.Struct(">H")
_MEMBER = struct.Struct(">iiiii")
_POSITIVE = 0x7FFFFFFF


class BadMessages(ValueError):
    """Stored bytes that cannot be told apart into messages; ``messages`` are those before the fault."""

    def __init__(self, text: str, messages: list[StoredMessage]) -> None:
        super().__init__(text)
        self.messages = messages


class StoredMessage:
    """One message with all that the broker stored of it.  Times are milliseconds since the epoch, as stored.

    ``raw_body`` is the body as stored, compressed where ``sys_flag`` says so; ``problem`` says why it is not what was
    sent (its checksum is wrong), else it is None.
    """

    __slots__ = (
        "_properties",
        "born_timestamp",
        "commit_log_offset",
        "flag",
        "prepared_transaction_offset",
        "problem",
        "queue_id",
        "queue_offset",
        "raw_body",
        "raw_born_host",
        "raw_properties",
        "raw_store_host",
        "reconsume_times",
        "size",
        "store_timestamp",
        "sys_flag",
        "topic",
    )

    def __init__(
        self,
        topic: str,
        queue_id: int,
        queue_offset: int,
        raw_body: bytes,
        raw_properties: bytes,
        commit_log_offset: int = 0,
        flag: int = 0,
        sys_flag: int = 0,
        born_timestamp: int = 0,
        raw_born_host: bytes = bytes(8),
        store_timestamp: int = 0,
        raw_store_host: bytes = bytes(8),
        reconsume_times: int = 0,
        prepared_transaction_offset: int = 0,
        size: int = 0,
        problem: str | None = None,
    ) -> None:
        self.topic = topic
        self.queue_id = queue_id
        #: Position in its queue: what is committed and where a pull begins.
        self.queue_offset = queue_offset
        self.raw_body = raw_body
        self.raw_properties = raw_properties
        #: Position in the broker's log: what CONSUMER_SEND_MSG_BACK and VIEW_MESSAGE_BY_ID take.
        self.commit_log_offset = commit_log_offset
        self.flag = flag
        self.sys_flag = sys_flag
        self.born_timestamp = born_timestamp
        self.raw_born_host = raw_born_host
        self.store_timestamp = store_timestamp
        self.raw_store_host = raw_store_host
        self.reconsume_times = reconsume_times
        self.prepared_transaction_offset = prepared_transaction_offset
        #: Bytes that it takes up on the broker and on the wire.
        self.size = size
        self.problem = problem
        self._properties: dict[str, str] | None = None

    @property
    def compression(self) -> str | None:
        """How the stored body is compressed: zlib, lz4, zstd; None where it is not."""
        return kind_of(self.sys_flag)

    @property
    def body(self) -> bytes:
        """The body as it was sent, decompressed on every access.

        Raise `CompressionError` where that cannot be done: the library is missing, it is broken, it is too large.
        """
        if not self.sys_flag & COMPRESSED:
            return self.raw_body
        return self.decompressed(MAX_BODY)

    def decompressed(self, limit: int) -> bytes:
        """Return the body as it was sent, with ``limit`` in the place of `MAX_BODY`."""
        kind = kind_of(self.sys_flag)
        return self.raw_body if kind is None else decompress(self.raw_body, kind, limit)

    @property
    def properties(self) -> dict[str, str]:
        """All properties, the system's included; parsed when first looked at."""
        if self._properties is None:
            self._properties = parse_properties(self.raw_properties)
        return self._properties

    def own_properties(self) -> dict[str, str]:
        """Return all properties in a dict that the caller may change."""
        known = self._properties
        return parse_properties(self.raw_properties) if known is None else known.copy()

    @property
    def offset_id(self) -> str:
        """The id that the broker made, which says where the message is stored."""
        return offset_id(self.raw_store_host, self.commit_log_offset)

    @property
    def born_host(self) -> str:
        """The sender's address as the broker saw it, ``host:port``."""
        return host_text(self.raw_born_host)

    @property
    def store_host(self) -> str:
        """The broker's address as it knows itself, ``host:port``."""
        return host_text(self.raw_store_host)

    def __repr__(self) -> str:
        return f"<StoredMessage {self.topic}:{self.queue_id}@{self.queue_offset}, {len(self.raw_body)} bytes>"


def decode_messages(body: bytes) -> list[StoredMessage]:
    """Return the messages of the body of a pull, of VIEW_MESSAGE_BY_ID and of QUERY_MESSAGE.

    A message whose checksum is wrong, and one that is packed and cannot be unpacked, is in the list all the same, with
    its ``problem``.  Raise `BadMessages`, and nothing else, where the bytes are no sequence of messages.
    """
    found: list[StoredMessage] = []
    append = found.append
    crc32 = zlib.crc32
    plain_head = _HEADS[0]
    plain_size, unpack_plain = plain_head.size, plain_head.unpack_from
    u16 = _U16.unpack_from
    unpacker = _Unpacker()
    topic_raw, topic = b"", ""
    at, end = 0, len(body)
    try:
        while at < end:
            (
                total, magic, crc, queue_id, flag, queue_offset, position, sys_flag, born, born_host, stored,
                store_host, times, prepared, body_size,
            ) = unpack_plain(body, at)  # fmt: skip
            start = at + plain_size
            if sys_flag & 48:
                head = _HEADS[sys_flag & 48]
                (
                    total, magic, crc, queue_id, flag, queue_offset, position, sys_flag, born, born_host, stored,
                    store_host, times, prepared, body_size,
                ) = head.unpack_from(body, at)  # fmt: skip
                start = at + head.size
            stop = at + total
            topic_at = start + body_size
            if magic == _V1:
                topic_end = topic_at + 1 + body[topic_at]
                topic_at += 1
            elif magic == _V2:
                topic_end = topic_at + 2 + u16(body, topic_at)[0]
                topic_at += 2
            else:
                raise BadMessages(f"there is no message at byte {at} of {end}: the magic number is {magic}", found)
            properties_at = topic_end + 2
            if properties_at + u16(body, topic_end)[0] != stop or stop > end or body_size < 0:
                raise BadMessages(f"the sizes in the message at byte {at} of {end} contradict each other", found)
            raw = body[topic_at:topic_end]
            if raw != topic_raw:
                topic_raw, topic = raw, str(raw, "utf-8", "replace")
            payload = body[start : start + body_size]
            message = StoredMessage(
                topic, queue_id, queue_offset, payload, body[properties_at:stop], position, flag, sys_flag, born,
                born_host, stored, store_host, times, prepared, total,
            )  # fmt: skip
            if crc32(payload) & _POSITIVE != crc:
                message.problem = "the checksum of its body is wrong: it is not what was stored"
                append(message)
            elif sys_flag & _PACKED == _PACKED:
                found += unpacker.unpack(message)
            else:
                append(message)
            at = stop
    except (struct.error, IndexError):
        raise BadMessages(f"the message at byte {at} of {end} is cut off", found) from None
    return found


class _Unpacker:
    """Takes the packed messages of one answer apart, within what all of them may take up together."""

    def __init__(self) -> None:
        self._bytes = MAX_BODY
        self._members = _MOST_MEMBERS

    def unpack(self, outer: StoredMessage) -> list[StoredMessage]:
        """Return the members; the message itself with its problem where it cannot be taken apart."""
        try:
            plain = outer.decompressed(self._bytes)
            members = _members(plain, self._members)
        except ValueError as exc:
            outer.problem = f"it is a batch that cannot be taken apart: {exc}"
            return [outer]
        self._bytes -= len(plain)
        self._members -= len(members)
        sys_flag = outer.sys_flag & ~(_PACKED | COMPRESSED)
        return [
            StoredMessage(
                outer.topic, outer.queue_id, outer.queue_offset + index, payload, properties, outer.commit_log_offset,
                flag, sys_flag, outer.born_timestamp, outer.raw_born_host, outer.store_timestamp, outer.raw_store_host,
                outer.reconsume_times, outer.prepared_transaction_offset, outer.size // len(members),
            )
            for index, (flag, payload, properties) in enumerate(members)
        ]  # fmt: skip


def _members(body: bytes, most: int) -> list[tuple[int, bytes, bytes]]:
    """Return flag, body and properties of each member of a batch; raise ValueError."""
    members: list[tuple[int, bytes, bytes]] = []
    at, end = 0, len(body)
    try:
        while at < end:
            total, _, _, flag, size = _MEMBER.unpack_from(body, at)
            start = at + _MEMBER.size
            properties_at = start + size + 2
            stop = at + total
            if size < 0 or stop > end or properties_at + _U16.unpack_from(body, start + size)[0] != stop:
                raise ValueError(f"the sizes in the member at byte {at} of {end} contradict each other")
            if len(members) == most:
                raise ValueError(f"there are more than {most} members")
            members.append((flag, body[start : start + size], body[properties_at:stop]))
            at = stop
    except struct.error:
        raise ValueError(f"the member at byte {at} of {end} is cut off") from None
    if not members:
        raise ValueError("it is empty")
    return members


def encode_member(body: bytes, properties: bytes, flag: int = 0) -> bytes:
    """Return one member of a batch.  ``properties`` are UTF-8; at most 32,767 bytes of them fit."""
    size = _MEMBER.size + 2 + len(body) + len(properties)
    return b"".join((_MEMBER.pack(size, 0, 0, flag, len(body)), body, _U16.pack(len(properties)), properties))


def encode_batch(members: Iterable[bytes]) -> bytes:
    """Return the body of SEND_BATCH_MESSAGE: members for one topic, each from `encode_member`."""
    return b"".join(members)
