"""CSV: one table, each row complete in itself, as spreadsheets and import programs want it."""

from __future__ import annotations

import csv
import io

from examples.export_service.documents.content import Cell, Document

#: A spreadsheet takes a text that starts with one of these for a formula, and would carry it out.
FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")

ABOUT = ("Record", "Document", "Date", "Customer no.", "Customer", "Document currency")
TOTAL = ("Total", "Total value", "Total unit")


def render(document: Document) -> bytes:
    """UTF-8 with a byte order mark and CRLF, so that Excel opens it by a double click.

    The first column tells the rows of the table (``line``) from the figures below it (``total``), which stand in the
    last three columns as label, value and unit.  Dates are ISO 8601, numbers have a point and no separators; a text
    that a spreadsheet would take for a formula gets an apostrophe in front.
    """
    text = io.StringIO(newline="")
    table = csv.writer(text, lineterminator="\r\n")
    headings = [column.heading for column in document.columns]
    table.writerow([*ABOUT, *headings, *TOTAL])
    about = (document.number, document.issued, document.customer_number, document.customer, document.currency)
    for row in document.rows:
        table.writerow(map(_safe, ("line", *about, *row, None, None, None)))
    nothing = (None,) * len(headings)
    for total in document.totals:
        table.writerow(map(_safe, ("total", *about, *nothing, total.label, total.value, total.unit)))
    return text.getvalue().encode("utf-8-sig")


def _safe(value: Cell) -> str:
    if value is None:
        return ""
    if isinstance(value, str) and value.startswith(FORMULA_STARTS):
        return f"'{value}"
    return str(value)
