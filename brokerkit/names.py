"""The grammar of topic, group, tag and header names.

Names are the same on every backend, so they are checked once, here, before any I/O.  What a broker cannot
take as it stands is encoded by its backend.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from brokerkit.errors import ConfigurationError, PayloadError

__all__ = [
    "MAX_NAME",
    "RESERVED_HEADER",
    "RESERVED_NAME",
    "TagFilter",
    "check_group",
    "check_headers",
    "check_tag",
    "check_text",
    "check_topic",
]

#: Characters that a topic and its group may have together.
MAX_NAME = 100
#: Names that begin so belong to brokerkit itself.
RESERVED_NAME = "bk."
#: Headers that begin so carry brokerkit's own fields.
RESERVED_HEADER = "bk-"

_NAME = re.compile(r"[A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]+)*", re.ASCII)
_TAG = re.compile(r"[A-Za-z0-9_.\-]+", re.ASCII)
_ANY = "*"


def check_topic(name: str) -> str:
    """Return ``name``; raise `ConfigurationError` unless it is a legal topic name."""
    return _check_name("topic", name)


def check_group(topic: str, name: str) -> str:
    """Return ``name``; raise `ConfigurationError` unless it is a legal group name for ``topic``."""
    _check_name("group", name)
    if len(topic) + len(name) > MAX_NAME:
        raise ConfigurationError(
            f"topic {topic!r} and group {name!r} have {len(topic) + len(name)} characters together; "
            f"at most {MAX_NAME} are allowed",
            topic=topic,
        )
    return name


def _check_name(what: str, name: str) -> str:
    if not isinstance(name, str):
        raise ConfigurationError(f"a {what} name must be a str, not {type(name).__name__}")
    if len(name) > MAX_NAME:
        raise ConfigurationError(
            f"{what} name {name[:20]!r}… has {len(name)} characters; at most {MAX_NAME} are allowed"
        )
    if not _NAME.fullmatch(name):
        raise ConfigurationError(
            f"illegal {what} name {name!r}: use letters, digits, '_' and '-', in parts joined by single dots"
        )
    if name.startswith(RESERVED_NAME):
        raise ConfigurationError(f"{what} name {name!r} is reserved: names that start with 'bk.' are ours")
    return name


def check_tag(tag: str) -> str:
    """Return ``tag``; raise `PayloadError` unless it is a legal label of one message."""
    if not isinstance(tag, str):
        raise PayloadError(f"a tag must be a str, not {type(tag).__name__}")
    if not _is_tag(tag):
        raise PayloadError(f"illegal tag {tag[:MAX_NAME]!r}: use up to {MAX_NAME} letters, digits, '_', '-' and '.'")
    return tag


def _is_tag(text: str) -> bool:
    return len(text) <= MAX_NAME and _TAG.fullmatch(text) is not None


def check_text(what: str, value: str) -> str:
    """Return ``value``; raise `PayloadError` unless it is a str that UTF-8 can encode."""
    if not isinstance(value, str):
        raise PayloadError(f"{what} must be a str, not {type(value).__name__}")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as exc:
            # The value is left out: a header may be a token.
            raise PayloadError(
                f"{what} holds a lone surrogate at position {exc.start}, which UTF-8 cannot encode"
            ) from None
    return value


def check_headers(headers: Mapping[str, str]) -> None:
    """Raise `PayloadError` unless all names and values are encodable str and no name is reserved or empty."""
    if not isinstance(headers, Mapping):
        raise PayloadError(f"headers are a mapping of str to str, not {type(headers).__name__}")
    for name, value in headers.items():
        check_text("a header name", name)
        check_text(f"header {name!r}", value)
        if not name:
            raise PayloadError("a header name must not be empty")
        if name[:3].lower() == RESERVED_HEADER:
            raise PayloadError(f"header {name!r} is reserved: headers that start with 'bk-' are ours")


class TagFilter:
    """A subscription: ``*`` matches every message, ``a||b`` those whose tag is a or b.

    A message without a tag matches only ``*``.
    """

    __slots__ = ("expression", "tags")

    def __init__(self, expression: str = _ANY) -> None:
        """Parse ``expression``; raise `ConfigurationError` when it is malformed."""
        if not isinstance(expression, str):
            raise ConfigurationError(f"a tag filter must be a str, not {type(expression).__name__}")
        self.tags: frozenset[str] | None = None
        if expression.strip() != _ANY:
            tags = [part.strip() for part in expression.split("||")]
            for tag in tags:
                if not _is_tag(tag):
                    raise ConfigurationError(
                        f"malformed tag filter {expression!r}: write '*' or tags joined by '||', as in 'a||b'; a tag "
                        f"is up to {MAX_NAME} letters, digits, '_', '-' and '.'"
                    )
            self.tags = frozenset(tags)
        #: The normal form: equal filters have equal expressions.
        self.expression = _ANY if self.tags is None else "||".join(sorted(self.tags))

    def matches(self, tag: str | None) -> bool:
        """Return whether a message with ``tag`` belongs to the subscription."""
        return self.tags is None or tag in self.tags

    def __eq__(self, other: object) -> bool:
        return isinstance(other, TagFilter) and other.expression == self.expression

    def __hash__(self) -> int:
        return hash(self.expression)

    def __repr__(self) -> str:
        return f"TagFilter({self.expression!r})"
