"""Write the generated parts of the documentation: the reference of all settings and the table of capabilities.

``python -m docs.generate`` writes them between their markers; ``--check`` changes nothing and exits with 1 when a
page is out of date.
"""

from __future__ import annotations

import argparse
import re
import sys
import types
from collections.abc import Callable, Iterable
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from brokerkit.compatibility import SECTION_MODELS
from brokerkit.registry import BUILT_IN, GROUP, Registry
from brokerkit.settings import (
    GroupSettings,
    IdempotencySettings,
    RetrySettings,
    Settings,
    TopicSettings,
)
from brokerkit.spi import Capability

DOCS = Path(__file__).parent

#: What stands in the first column of the table of capabilities, in the SPI's order.
MEANINGS: dict[Capability, str] = {
    Capability.DURABLE: "a send that returned survives the restart of the broker and of the process",
    Capability.MULTIPROCESS: "several processes work on the same topics",
    Capability.CONSUMER_GROUPS: "several groups each receive every message",
    Capability.TAGS: "a group receives only messages with certain tags",
    Capability.DELAYED_SEND: "a message is held back until it is due",
    Capability.DEAD_LETTER: "messages that were given up on are kept",
    Capability.BROADCAST: "every connected consumer receives every message",
    Capability.INBOX: "requests get their replies",
    Capability.BROWSE: "dead letters can be read without disturbing them",
    Capability.ORDERED: "a group is handled in order",
    Capability.ORDERED_BY_KEY: "messages of one key keep their order across consumers",
    Capability.FROM_START: "a new group may begin with old messages",
    Capability.SELECTIVE_ACK: "an acknowledged message never comes back",
    Capability.REDELIVERED: "a delivery says whether it is the first",
    Capability.LEASE: "an unsettled delivery returns after a time, which can be extended",
    Capability.STRICT_PRIORITY: "higher priorities are delivered first",
    Capability.ATOMIC_SETTLE: "a settlement and its follow-up are one transaction",
    Capability.START_MARKS: "a started message is told apart from one that was only fetched",
    Capability.MANAGE: "topics and groups can be declared, checked and deleted",
    Capability.PURGE: "a group can be emptied",
    Capability.STATS: "figures of a group can be read",
    Capability.STRICT_TOPICS: "a topic that was never declared is an error",
}

_PLAIN_TYPES = {str: "text", int: "whole number", float: "number", bool: "true or false"}


def own_backends() -> list[str]:
    """Return the backends of this distribution; what else is installed must not change the pages."""
    return [
        point.name for point in entry_points(group=GROUP) if point.dist is not None and point.dist.name == "brokerkit"
    ]


def capability_table() -> str:
    """Return the table of what any connection of each backend may offer."""
    registry = Registry()
    backends = [registry.find(name) for name in sorted(own_backends())]
    rows = [["capability", "meaning", *(backend.name for backend in backends)]]
    for capability, meaning in MEANINGS.items():
        offers = ("yes" if capability in backend.capabilities else "no" for backend in backends)
        rows.append([capability.name, meaning, *offers])
    return _table(rows)


def settings_reference() -> str:
    """Return one table for each section of the configuration."""
    parts: list[tuple[str, type[BaseModel], set[str]]] = [
        ("Top level, and each entry of `managers`", Settings, {*BUILT_IN}),
        ("`retry`, also below a topic", RetrySettings, set()),
        ("`idempotency`", IdempotencySettings, set()),
        ("`topics.<topic>`", TopicSettings, {*BUILT_IN}),
        ("`topics.<topic>.groups.<group>`", GroupSettings, {*BUILT_IN}),
        *((f"`{name}`", model, set[str]()) for name, model in _section_models()),
    ]
    text = []
    for title, model, hidden in parts:
        rows = [["key", "value", "default", "meaning"]]
        for name, field in model.model_fields.items():
            if name not in hidden:
                rows.append([f"`{name}`", _type(field.annotation), _default(field), field.description or ""])
        if hidden:
            names = ", ".join(f"`{name}`" for name in sorted(hidden))
            rows.append([names, "mapping", "", "Options for this backend; so for every installed backend's name."])
        text.append(f"### {title}\n\n{_table(rows)}")
    return "\n".join(text)


def _section_models() -> Iterable[tuple[str, type[BaseModel]]]:
    registry = Registry()
    installed = own_backends()
    for name in BUILT_IN:
        own = getattr(registry.find(name), "settings_model", None) if name in installed else None
        model = own or SECTION_MODELS.get(name)
        if model is not None:
            yield name, model


def _type(annotation: Any) -> str:
    if get_origin(annotation) in (Union, types.UnionType):
        return " or ".join(_type(part) for part in get_args(annotation) if part is not type(None))
    if get_origin(annotation) is Literal:
        return ", ".join(f"`{value}`" for value in get_args(annotation))
    if get_origin(annotation) is dict:
        return "mapping"
    if hasattr(annotation, "__metadata__"):
        return _type(get_args(annotation)[0])
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "mapping"
    return _PLAIN_TYPES.get(annotation, "any")


def _default(field: FieldInfo) -> str:
    value = field.get_default()
    if field.default_factory is not None or value is None:
        return "not set"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    return f"`{value:g}`" if isinstance(value, float) and value < 1e6 else f"`{value}`"


def _table(rows: list[list[str]]) -> str:
    lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    lines.insert(1, "|" + "---|" * len(rows[0]))
    return "\n".join(lines) + "\n"


#: What is generated: the page, the name in its markers, and what makes the text.
PARTS: tuple[tuple[str, str, Callable[[], str]], ...] = (
    ("configuration.md", "settings", settings_reference),
    ("backends.md", "capabilities", capability_table),
)


def fill(page: str, name: str, text: str) -> str:
    """Return ``page`` with ``text`` between the markers of ``name``; raise ValueError when they are missing."""
    begin, end = f"<!-- generated: {name} -->", f"<!-- end of {name} -->"
    pattern = re.compile(re.escape(begin) + ".*?" + re.escape(end), re.DOTALL)
    if not pattern.search(page):
        raise ValueError(f"the page lacks the markers {begin} and {end}")
    return pattern.sub(lambda _: f"{begin}\n\n{text}\n{end}", page)


def main(arguments: list[str] | None = None) -> int:
    """Write the generated parts, or only compare them; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m docs.generate", description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing; exit with 1 when a page is out of date")
    check = parser.parse_args(arguments).check
    stale = []
    for file, name, make in PARTS:
        path = DOCS / file
        page = path.read_text(encoding="utf-8")
        filled = fill(page, name, make())
        if filled != page:
            stale.append(file)
            if not check:
                path.write_text(filled, encoding="utf-8")
    if stale:
        said = "out of date; run: python -m docs.generate" if check else "written"
        sys.stdout.write(f"{', '.join(stale)}: {said}\n")
    return 1 if check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
