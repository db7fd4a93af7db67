"""A document as content: what is said, in which order, before any format draws it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from decimal import Decimal
from typing import Literal

Cell = str | int | Decimal | date | None
Kind = Literal["text", "count", "money", "weight", "rate", "percent", "date"]

MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")


@dataclass(frozen=True, slots=True)
class Sender:
    """The letterhead.  ``footer`` has one tuple of lines for each column at the foot of a page."""

    name: str
    claim: str
    address: tuple[str, ...]
    footer: tuple[tuple[str, ...], ...]

    @property
    def return_address(self) -> str:
        return " · ".join(self.address)


@dataclass(frozen=True, slots=True)
class Column:
    """One column of the table.  ``width`` is its share of the table's width; only the proportions count."""

    field: str
    heading: str
    kind: Kind
    width: float

    @property
    def to_the_right(self) -> bool:
        return self.kind not in ("text", "date")


@dataclass(frozen=True, slots=True)
class Total:
    """A figure below the table.  ``strong`` marks the one that the reader looks for."""

    label: str
    value: Decimal | int
    kind: Kind
    unit: str = ""
    strong: bool = False

    @property
    def text(self) -> str:
        return f"{shown(self.value, self.kind)} {self.unit}".rstrip()


@dataclass(frozen=True, slots=True)
class Document:
    """Everything that stands in a document.  Each of ``rows`` has one value for each of ``columns``."""

    template_id: str
    sender: Sender
    title: str
    number: str
    issued: date
    currency: str | None
    customer_number: str
    customer: str
    address: tuple[str, ...]
    facts: tuple[tuple[str, str], ...]
    opening: tuple[str, ...]
    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]
    totals: tuple[Total, ...]
    closing: tuple[str, ...]

    def texts(self) -> tuple[tuple[str, ...], ...]:
        """The rows as a reader sees them."""
        kinds = tuple(column.kind for column in self.columns)
        return tuple(tuple(map(shown, row, kinds)) for row in self.rows)

    def texts_by_field(self) -> tuple[Mapping[str, str], ...]:
        """The rows as a reader sees them, each text under the field of its column."""
        fields = tuple(column.field for column in self.columns)
        return tuple(dict(zip(fields, row, strict=True)) for row in self.texts())


def shown(value: Cell, kind: Kind) -> str:
    """The value as a reader sees it: 1,234.50 for money, 7 Nov 2026 for a date, nothing for None."""
    if value is None:
        return ""
    if isinstance(value, date):
        return f"{value.day} {MONTHS[value.month - 1]} {value.year}"
    if isinstance(value, str):
        return value
    match kind:
        case "money" | "weight":
            return f"{value:,.2f}"
        case "rate":
            return f"{value:,.4f}"
        case "percent":
            return f"{Decimal(value).normalize():f} %"
        case _:
            return f"{value:,}"
