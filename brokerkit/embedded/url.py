"""Where a ``sqlite:`` or ``memory:`` URL points to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import parse_qsl, unquote

from brokerkit.errors import ConfigurationError

__all__ = ["Location", "parse_url"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Location:
    """What a URL of the embedded backend says."""

    #: The name of a store in memory, "" for a private one; None for a file.
    memory: str | None = None
    #: The file as the URL names it; None where the settings decide.
    path: str | None = None
    #: The options of the query.
    query: Mapping[str, str] = field(default_factory=dict)


def parse_url(url: str | None) -> Location:
    """Return where ``url`` points to; None is a file that the settings name.

    ``sqlite:///relative.db``, ``sqlite:////absolute.db``, ``sqlite://`` (the path of the section),
    ``memory://name`` (shared in this process) and ``memory://`` (private), each with ``?option=value``.
    Raise `ConfigurationError` for anything else.
    """
    if url is None:
        return Location()
    scheme, separator, rest = url.partition("://")
    scheme = scheme.lower()
    if not separator or scheme not in ("sqlite", "memory"):
        raise ConfigurationError(
            "the embedded backend takes URLs that begin with sqlite:// or memory://, "
            f"not {scheme if separator else url.partition(':')[0]!r}",
            backend="embedded",
        )
    place, _, text = rest.partition("?")
    query = _parse_query(text)
    place = unquote(place)
    # The place is never quoted: of another kind of URL it may hold a password.
    if scheme == "memory":
        if "/" in place:
            raise ConfigurationError(
                "malformed memory URL: write memory://name, without a further slash", backend="embedded"
            )
        return Location(memory=place, query=query)
    if place in ("", "/"):
        return Location(query=query)
    if not place.startswith("/"):
        raise ConfigurationError(
            "malformed sqlite URL: write three slashes for a relative path (sqlite:///broker.db) "
            "and four for an absolute one",
            backend="embedded",
        )
    if place == "/:memory:":
        raise ConfigurationError(
            "'sqlite:///:memory:' would give every connection a database of its own: write memory://name",
            backend="embedded",
        )
    return Location(path=place[1:], query=query)


def _parse_query(text: str) -> dict[str, str]:
    query: dict[str, str] = {}
    for key, value in parse_qsl(text, keep_blank_values=True):
        if key in query:
            raise ConfigurationError(f"the option {key!r} stands twice in the URL", backend="embedded")
        query[key] = value
    return query
