r"""`Layouts`: reads the properties of messages like the ones before, without taking their text apart name by name.

What one sender sends has the same names in the same order again and again, whatever made the order: the sender, or
the hash map of a Java broker.  So each such order becomes one regular expression, which says in one step that the
text has these names and what their values are.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from brokerkit_rocketmq.property_text import (
    CONTENT_TYPE,
    CORRELATION,
    KEY,
    KEYS,
    MESSAGE_ID,
    REPLY_TO,
    TAGS,
    TIME,
    TYPE,
    is_dropped,
    is_header,
)

__all__ = ["Layout", "Layouts"]

#: Layouts that are tried: those of single sends, of batches and of retries, of two kinds of messages.
_MOST_TRIED = 6
#: Layouts that are ever learned: names that differ from message to message are not worth it.
_MOST_LEARNED = 200
#: Names of one layout.
_MOST_NAMES = 40
#: What `Layout.fields` are, but for the key.
_FIELDS = (MESSAGE_ID, TAGS, TYPE, CONTENT_TYPE, CORRELATION, REPLY_TO, TIME)


class Layout:
    """Names in an order, of which none means more than that its value is a field or a header."""

    __slots__ = ("fields", "headers", "match")

    def __init__(self, names: list[str]) -> None:
        properties = "\x02".join([f"{re.escape(name)}\x01([^\x02]*+)" for name in names])
        #: Matches a whole text.  The last group, which stands for names that are missing, never takes part.
        self.match = re.compile(f"{properties}\x02?((?!))?").fullmatch
        groups = {name: number for number, name in enumerate(names, 1)}
        missing = len(names) + 1
        #: The groups of id, key, tag, type, content type, correlation id, address for replies, and timestamp.
        self.fields = [groups.get(name, missing) for name in _FIELDS]
        self.fields.insert(1, groups.get(KEY, groups.get(KEYS, missing)))
        #: Names and groups of the headers.
        self.headers = [(name, groups[name]) for name in names if is_header(name)]


class Layouts:
    """The layouts of the messages that came lately, the last one first."""

    __slots__ = ("_learned", "tried")

    def __init__(self) -> None:
        self.tried: list[Layout] = []
        self._learned = 0

    def prefer(self, layout: Layout) -> None:
        """Try it first from now on."""
        self.tried.remove(layout)
        self.tried.insert(0, layout)

    def learn(self, names: Iterable[str]) -> None:
        """Note the names of a message that no layout matched."""
        if self._learned >= _MOST_LEARNED:
            return
        ordered = list(names)
        if len(ordered) > _MOST_NAMES or not all(
            name in _FIELDS or name in (KEY, KEYS) or is_header(name) or is_dropped(name) for name in ordered
        ):
            return
        self._learned += 1
        self.tried.insert(0, Layout(ordered))
        del self.tried[_MOST_TRIED:]
