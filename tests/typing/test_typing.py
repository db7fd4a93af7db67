"""The types that applications see: mypy --strict accepts the good snippets and refuses the marked lines of the bad."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from mypy import api

HERE = Path(__file__).parent
GOOD = sorted(HERE.glob("good_*.py"))
BAD = sorted(HERE.glob("*_bad.py"))

#: A line of mypy's output, and the mark of a snippet.
ERROR = re.compile(r"^(?P<file>[^:]+):(?P<line>\d+): error: (?P<text>.*)$")
MARK = re.compile(r"# E: (?P<part>.+)$")

Errors = dict[tuple[str, int], list[str]]


@pytest.fixture(scope="module")
def errors(tmp_path_factory: pytest.TempPathFactory) -> Errors:
    """What mypy finds, by (file name, line)."""
    cache = tmp_path_factory.mktemp("mypy")
    output, trouble, _ = api.run(
        [
            "--strict",
            f"--config-file={HERE.parents[1] / 'pyproject.toml'}",
            f"--cache-dir={cache}",
            "--no-error-summary",
            "--hide-error-context",
            *map(str, GOOD + BAD),
        ]
    )
    assert trouble == ""
    found: Errors = {}
    for line in output.splitlines():
        match = ERROR.match(line)
        if match is not None:
            found.setdefault((Path(match["file"]).name, int(match["line"])), []).append(match["text"])
    return found


@pytest.mark.parametrize("snippet", GOOD, ids=lambda path: path.name)
def test_mypy_accepts_what_is_right(snippet: Path, errors: Errors) -> None:
    assert {key: texts for key, texts in errors.items() if key[0] == snippet.name} == {}


@pytest.mark.parametrize("snippet", BAD, ids=lambda path: path.name)
def test_mypy_refuses_what_is_wrong(snippet: Path, errors: Errors) -> None:
    marks = {
        number: match["part"]
        for number, line in enumerate(snippet.read_text().splitlines(), 1)
        if (match := MARK.search(line)) is not None
    }
    found = {line: texts for (name, line), texts in errors.items() if name == snippet.name}

    assert marks
    assert sorted(found) == sorted(marks), {line: found.get(line, "accepted") for line in found.keys() ^ marks.keys()}
    for line, part in marks.items():
        assert any(part in text for text in found[line]), (line, part, found[line])
