"""Bodies of administrative answers: JSON, and what fastjson makes of maps whose keys are no texts.

fastjson writes ``Map<Long, …>`` with bare numbers and ``Map<MessageQueue, …>`` with whole objects as keys:
``{0:"127.0.0.1:10911"}``, ``{{"brokerName":"a","queueId":0,"topic":"T"}:{"maxOffset":12}}``.
"""

from __future__ import annotations

import json
import re
from typing import Any

__all__ = ["BadBody", "parse_body"]

#: Deeper than any answer, and far from the interpreter's own limit.
_DEEPEST = 64

_SPACE = re.compile(r"[ \t\r\n]*")
_TEXT = re.compile(r'"((?:[^"\\]|\\.)*)"', re.DOTALL)
#: Numbers with the suffixes of Java's types, names without quotes, and the constants.
_BARE = re.compile(r"[A-Za-z0-9_$.+\-]+")
_INTEGER = re.compile(r"(-?\d{1,400})[LSB]?", re.ASCII)
_FLOAT = re.compile(r"(-?\d{1,400}(?:\.\d{0,400})?(?:[eE][+-]?\d{1,4})?)[FD]?", re.ASCII)
_CONSTANTS = {"true": True, "false": False, "null": None, "NaN": None, "undefined": None}


class BadBody(ValueError):
    """A body is no JSON, not even fastjson's."""


def parse_body(body: bytes) -> Any:
    """Return what the body says; None for an empty one.

    Keys of objects are texts, also bare ones (``0`` becomes ``"0"``); an object as a key becomes the tuple of its
    (name, value) pairs sorted by name, so that ``dict(key)["queueId"]`` reads it.  Raise `BadBody`, and nothing else.
    """
    try:
        text = str(body, "utf-8")
    except UnicodeDecodeError as exc:
        raise BadBody(f"the body is not UTF-8 at byte {exc.start}") from None
    if not text or text.isspace():
        return None
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        pass
    parser = _Parser(text)
    value = parser.value(0)
    parser.skip()
    if parser.at != len(text):
        raise parser.error("the end")
    return value


class _Parser:
    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0

    def skip(self) -> str:
        """Go to the next token; return its first character, empty at the end."""
        found = _SPACE.match(self.text, self.at)
        self.at = self.at if found is None else found.end()
        return self.text[self.at : self.at + 1]

    def error(self, wanted: str) -> BadBody:
        return BadBody(f"the body is no JSON: {wanted} is missing at character {self.at}")

    def value(self, depth: int) -> Any:
        if depth > _DEEPEST:
            raise BadBody(f"the body is nested deeper than {_DEEPEST} levels")
        first = self.skip()
        if first == "{":
            return self._object(depth)
        if first == "[":
            return self._array(depth)
        if first == '"':
            return self._text()
        return self._constant(self._bare())

    def _object(self, depth: int) -> dict[Any, Any]:
        found: dict[Any, Any] = {}
        self.at += 1
        while (first := self.skip()) != "}":
            if first == ",":
                self.at += 1
                continue
            if first in ("{", "["):
                key = _frozen(self.value(depth + 1))
            elif first == '"':
                key = self._text()
            else:
                key = self._bare()
            if self.skip() != ":":
                raise self.error("':'")
            self.at += 1
            found[key] = self.value(depth + 1)
            if self.skip() not in (",", "}"):
                raise self.error("',' or '}'")
        self.at += 1
        return found

    def _array(self, depth: int) -> list[Any]:
        found: list[Any] = []
        self.at += 1
        while (first := self.skip()) != "]":
            if first == ",":
                self.at += 1
                continue
            found.append(self.value(depth + 1))
            if self.skip() not in (",", "]"):
                raise self.error("',' or ']'")
        self.at += 1
        return found

    def _text(self) -> str:
        match = _TEXT.match(self.text, self.at)
        if match is None:
            raise self.error("the end of a text")
        self.at = match.end()
        inner = match.group(1)
        if "\\" not in inner:
            return inner
        try:
            return str(json.loads(f'"{inner}"', strict=False))
        except ValueError:
            raise self.error("a legal escape") from None

    def _bare(self) -> str:
        match = _BARE.match(self.text, self.at)
        if match is None:
            raise self.error("a value")
        self.at = match.end()
        return match.group()

    def _constant(self, text: str) -> Any:
        if text in _CONSTANTS:
            return _CONSTANTS[text]
        if match := _INTEGER.fullmatch(text):
            return int(match.group(1))
        if match := _FLOAT.fullmatch(text):
            return float(match.group(1))
        raise self.error(f"a value ({text[:20]!r} is none)")


def _frozen(value: Any) -> Any:
    """Return a key that can be looked up."""
    if isinstance(value, dict):
        # Keys may be of several types; their texts can be compared.
        return tuple(sorted(((key, _frozen(item)) for key, item in value.items()), key=lambda pair: str(pair[0])))
    return tuple(map(_frozen, value)) if isinstance(value, list) else value
