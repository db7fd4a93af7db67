"""The ``embedded:`` section of the configuration, which is also what the query of a URL may hold."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from brokerkit.errors import ConfigurationError

__all__ = ["EmbeddedSettings", "parse_settings"]


class EmbeddedSettings(BaseModel):
    """Options of the embedded broker.  Times are seconds, sizes are bytes."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    path: str = Field(default="brokerkit.db", min_length=1, description="The SQLite file.")
    durability: Literal["full", "normal"] = Field(
        default="full",
        description="full: a send that returned survives a power failure; normal: the crash of a process only.",
    )
    lease: float = Field(default=30.0, gt=0, description="After so long an unsettled delivery returns to its group.")
    retention_age: float = Field(
        default=7 * 86400.0, ge=0, description="How long messages stay readable for groups that begin at the earliest."
    )
    retention_bytes: int = Field(
        default=1 << 30,
        ge=0,
        description="While the file is larger, settled messages are removed, oldest first, however young they are. "
        "In memory: how many bytes of them each topic keeps.",
    )
    retention_messages: int = Field(
        default=10_000, ge=0, description="How many settled messages a topic in memory keeps for such groups."
    )
    max_message_size: int = Field(default=64 << 20, gt=0, description="The largest body that is accepted.")


def parse_settings(section: Mapping[str, Any], query: Mapping[str, str]) -> EmbeddedSettings:
    """Return the settings of ``section``, overridden by the ``query`` of the URL.

    Raise `ConfigurationError` that names each bad key, where it stands and, for an unknown key, the nearest
    known one.
    """
    known = list(EmbeddedSettings.model_fields)
    faults = []
    for where, keys in (("the embedded section", section), ("the URL", query)):
        for key in keys:
            if key not in known:
                near = difflib.get_close_matches(str(key), known, n=1, cutoff=0.5)
                hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(known)}"
                faults.append(f"unknown key {key!r} in {where}: {hint}")
    if not faults:
        try:
            return EmbeddedSettings.model_validate({**section, **query})
        except ValidationError as error:
            for detail in error.errors(include_url=False):
                key = ".".join(str(part) for part in detail["loc"])
                where = "the URL" if key in query else "the embedded section"
                faults.append(f"{key!r} in {where}: {detail['msg']}, not {detail['input']!r}")
    raise ConfigurationError("; ".join(faults), backend="embedded")
