"""PDF: an A4 letter, drawn with the typeface in ``fonts/``."""

from __future__ import annotations

import io
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from reportlab.lib.colors import Color, HexColor
from reportlab.lib.pagesizes import A4
from reportlab.lib.units import mm
from reportlab.pdfbase import pdfmetrics
from reportlab.pdfbase.ttfonts import TTFont
from reportlab.pdfgen.canvas import Canvas

from examples.export_service.documents.content import Column, Document, Sender

FONTS = Path(__file__).parent / "fonts"
REGULAR, BOLD = "Roboto-Regular", "Roboto-Bold"
INK, SOFT, LINE, ACCENT = HexColor("#1d2733"), HexColor("#5c6b7a"), HexColor("#d5dce3"), HexColor("#14606b")

WIDTH, HEIGHT = A4
LEFT, RIGHT = 18 * mm, WIDTH - 18 * mm
ADDRESS_TOP = HEIGHT - 50 * mm
FOOT = 30 * mm
BODY, SMALL = 9.0, 7.0
LEADING = 12.0
CELL_SIZE, CELL_LEADING, CELL_PADDING = 8.5, 10.5, 3.0
#: More lines than that in one cell are cut: a row must fit on a page.
CELL_LINES = 12

# reportlab keeps fonts by name for the whole process, and reads each through one file position when it writes the
# glyphs that a document needs: two threads at it at once get each other's (KeyError, now and then).
_one_at_a_time = threading.Lock()


@dataclass(frozen=True, slots=True)
class _Row:
    cells: tuple[tuple[str, ...], ...]

    @property
    def height(self) -> float:
        return max(len(cell) for cell in self.cells) * CELL_LEADING + 2 * CELL_PADDING


def render(document: Document) -> bytes:
    """The letter as PDF.  A character that the typeface does not have becomes a question mark."""
    file = io.BytesIO()
    with _one_at_a_time:
        _fonts()
        canvas = Canvas(file, pagesize=A4, invariant=1, lang="en")
        canvas.setTitle(document.title)
        canvas.setAuthor(document.sender.name)
        _Letter(canvas, document).draw()
        canvas.save()
    return file.getvalue()


class _Letter:
    def __init__(self, canvas: Canvas, document: Document) -> None:
        self._canvas = canvas
        self._document = document
        self._widths = _column_widths(document.columns)
        self._rows = [self._row(row) for row in document.texts()]
        self._head = self._row([column.heading for column in document.columns], BOLD)
        self._closing = [_wrapped(text, REGULAR, BODY, RIGHT - LEFT) for text in document.closing]

    def draw(self) -> None:
        table_top = self._first_table_top()
        pages = _paginated([row.height for row in self._rows], self._rooms(table_top), self._tail_height())
        start = 0
        for number, count in enumerate(pages, start=1):
            self._letterhead()
            if number == 1:
                self._opening()
                y = table_top
            else:
                y = self._continued()
            if count:
                y = self._table(y, self._rows[start : start + count])
            start += count
            if number == len(pages):
                self._tail(y)
            self._footer(self._document.sender, number, len(pages))
            self._canvas.showPage()

    def _rooms(self, table_top: float) -> tuple[float, float]:
        return table_top - FOOT - self._head.height, self._next_top() - FOOT - self._head.height

    def _next_top(self) -> float:
        return HEIGHT - 42 * mm

    def _row(self, texts: Sequence[str], font: str = REGULAR) -> _Row:
        cells = []
        for text, width in zip(texts, self._widths, strict=True):
            lines = _wrapped(text, font, CELL_SIZE, width - 2 * CELL_PADDING)
            cells.append(lines if len(lines) <= CELL_LINES else (*lines[: CELL_LINES - 1], "…"))
        return _Row(tuple(cells))

    def _text(self, x: float, y: float, text: str, size: float = BODY, font: str = REGULAR, color: Color = INK) -> None:
        self._canvas.setFont(font, size)
        self._canvas.setFillColor(color)
        self._canvas.drawString(x, y, text)

    def _text_to(
        self, x: float, y: float, text: str, size: float = BODY, font: str = REGULAR, color: Color = INK
    ) -> None:
        self._text(x - pdfmetrics.stringWidth(text, font, size), y, text, size, font, color)

    def _rule(self, y: float, color: Color, thickness: float, left: float = LEFT) -> None:
        self._canvas.setStrokeColor(color)
        self._canvas.setLineWidth(thickness)
        self._canvas.line(left, y, RIGHT, y)

    def _letterhead(self) -> None:
        sender = self._document.sender
        self._text(LEFT, HEIGHT - 22 * mm, sender.name, 17, BOLD, ACCENT)
        self._text_to(RIGHT, HEIGHT - 22 * mm, sender.claim, 8.5, color=SOFT)
        self._rule(HEIGHT - 25 * mm, ACCENT, 2)

    def _footer(self, sender: Sender, number: int, count: int) -> None:
        self._rule(FOOT - 5 * mm, LINE, 0.6)
        for index, column in enumerate(sender.footer):
            for line, text in enumerate(column):
                self._text(LEFT + index * 50 * mm, FOOT - 9 * mm - line * 9, text, SMALL, color=SOFT)
        self._text_to(RIGHT, FOOT - 9 * mm, f"Page {number} of {count}", SMALL, color=SOFT)

    def _address(self) -> list[str]:
        return [line for text in self._document.address for line in _wrapped(text, REGULAR, 10, 85 * mm)]

    def _facts(self) -> list[tuple[str, str]]:
        lines = []
        for label, text in self._document.facts:
            first, *more = _wrapped(text, REGULAR, BODY, 42 * mm)
            lines += [(_drawable(label), first), *(("", line) for line in more)]
        return lines

    def _title_baseline(self) -> float:
        left = ADDRESS_TOP - 5 * mm - len(self._address()) * 13
        right = ADDRESS_TOP - len(self._facts()) * LEADING
        return min(left, right) - 12 * mm

    def _opening_lines(self) -> list[str]:
        return [line for text in self._document.opening for line in _wrapped(text, REGULAR, BODY, RIGHT - LEFT)]

    def _first_table_top(self) -> float:
        return self._title_baseline() - 7 * mm - len(self._opening_lines()) * LEADING

    def _opening(self) -> None:
        self._text(LEFT, ADDRESS_TOP, self._document.sender.return_address, SMALL, color=SOFT)
        for number, text in enumerate(self._address()):
            self._text(LEFT, ADDRESS_TOP - 5 * mm - number * 13, text, 10)
        for number, (label, text) in enumerate(self._facts()):
            self._text(RIGHT - 70 * mm, ADDRESS_TOP - number * LEADING, label, color=SOFT)
            self._text_to(RIGHT, ADDRESS_TOP - number * LEADING, text)
        y = self._title_baseline()
        self._text(LEFT, y, _drawable(self._document.title), 15, BOLD)
        for number, text in enumerate(self._opening_lines()):
            self._text(LEFT, y - 7 * mm - number * LEADING, text)

    def _continued(self) -> float:
        self._text(LEFT, HEIGHT - 34 * mm, _drawable(f"{self._document.title} · {self._document.customer}"), color=SOFT)
        return self._next_top()

    def _table(self, y: float, rows: Sequence[_Row]) -> float:
        self._cells(y, self._head, BOLD)
        y -= self._head.height
        self._rule(y, ACCENT, 1.2)
        for row in rows:
            self._cells(y, row, REGULAR)
            y -= row.height
            self._rule(y, LINE, 0.5)
        return y

    def _cells(self, y: float, row: _Row, font: str) -> None:
        x = LEFT
        for column, width, lines in zip(self._document.columns, self._widths, row.cells, strict=True):
            for number, text in enumerate(lines):
                baseline = y - CELL_PADDING - CELL_SIZE - number * CELL_LEADING
                if column.to_the_right:
                    self._text_to(x + width - CELL_PADDING, baseline, text, CELL_SIZE, font)
                else:
                    self._text(x + CELL_PADDING, baseline, text, CELL_SIZE, font)
            x += width

    def _tail_height(self) -> float:
        paragraphs = sum(len(lines) * LEADING + 6 for lines in self._closing)
        return 4 * mm + len(self._document.totals) * 20 + 6 * mm + paragraphs

    def _tail(self, y: float) -> None:
        y -= 4 * mm
        for total in self._document.totals:
            font, size = (BOLD, 11.0) if total.strong else (REGULAR, BODY)
            if total.strong:
                y -= 4
                self._rule(y, ACCENT, 1.2, left=RIGHT - 85 * mm)
            y -= 16
            self._text(RIGHT - 85 * mm + CELL_PADDING, y + 3, _drawable(total.label), size, font)
            self._text_to(RIGHT - CELL_PADDING, y + 3, _drawable(total.text), size, font)
        y -= 6 * mm
        for lines in self._closing:
            for text in lines:
                y -= LEADING
                self._text(LEFT, y, text)
            y -= 6


def _paginated(heights: Sequence[float], rooms: tuple[float, float], tail: float) -> list[int]:
    """How many rows stand on each page.  ``rooms`` are the heights for rows on the first page and on each later one."""
    pages = [0]
    room = rooms[0]
    for height in heights:
        if height > room and pages[-1]:
            pages.append(0)
            room = rooms[1]
        pages[-1] += 1
        room -= height
    if tail > room:
        # Totals alone on a page do not say what they are the totals of: two rows go with them.
        moved = max(0, min(2, pages[-1] - 1))
        pages[-1] -= moved
        pages.append(moved)
    return pages


def _column_widths(columns: Sequence[Column]) -> tuple[float, ...]:
    shares = sum(column.width for column in columns)
    return tuple((RIGHT - LEFT) * column.width / shares for column in columns)


def _wrapped(text: str, font: str, size: float, width: float) -> tuple[str, ...]:
    """The text in lines not wider than ``width``, broken at spaces, or within a word that is too long by itself."""
    lines: list[str] = []
    line = ""
    for word in _drawable(text).split(" "):
        longer = f"{line} {word}" if line else word
        if pdfmetrics.stringWidth(longer, font, size) <= width:
            line = longer
            continue
        if line:
            lines.append(line)
        while pdfmetrics.stringWidth(word, font, size) > width and len(word) > 1:
            fitting = next(
                n
                for n in range(len(word) - 1, 0, -1)
                if n == 1 or pdfmetrics.stringWidth(word[:n], font, size) <= width
            )
            lines.append(word[:fitting])
            word = word[fitting:]
        line = word
    return (*lines, line)


def _drawable(text: str) -> str:
    return "".join(character if ord(character) in _characters() else "?" for character in text)


@cache
def _fonts() -> tuple[TTFont, TTFont]:
    fonts = (TTFont(REGULAR, FONTS / f"{REGULAR}.ttf"), TTFont(BOLD, FONTS / f"{BOLD}.ttf"))
    for font in fonts:
        pdfmetrics.registerFont(font)
    return fonts


@cache
def _characters() -> frozenset[int]:
    return frozenset.intersection(*(frozenset(font.face.charToGlyph) for font in _fonts()))
