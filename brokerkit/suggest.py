"""What was probably meant by a name that nobody knows."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = ["did_you_mean", "nearest"]

# Longer names are cut: the cost of the comparison grows with the square of the length.
_LONGEST = 60


def nearest(name: str, known: Iterable[str]) -> str | None:
    """Return the one of ``known`` that is most like ``name``, or None when nothing is alike.

    Case, ``-`` and ``_`` make no difference, and neither do missing or additional separators.
    """
    plain = {_plain(candidate): candidate for candidate in sorted(known)}
    found = difflib.get_close_matches(_plain(name), list(plain), n=1, cutoff=0.6)
    return plain[found[0]] if found else None


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return ``"; did you mean 'x'?"``, or an empty text when nothing is alike."""
    found = nearest(name, known)
    return "" if found is None else f"; did you mean {found!r}?"


def _plain(name: str) -> str:
    return name[:_LONGEST].lower().replace("-", "").replace("_", "")
