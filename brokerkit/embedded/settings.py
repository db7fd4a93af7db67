"""The ``embedded:`` section of the configuration, which is also what the query of a URL may hold."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from brokerkit.spi import checked_section

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
    return checked_section(EmbeddedSettings, "embedded", ("the embedded section", section), ("the URL", query))
