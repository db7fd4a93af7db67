"""XLSX: the table on one sheet, ready to filter and to print, and what surrounds it on a second one."""

from __future__ import annotations

import io
from typing import Any

from openpyxl import Workbook
from openpyxl.styles import Alignment, Border, Font, PatternFill, Side
from openpyxl.utils import get_column_letter
from openpyxl.worksheet.properties import PageSetupProperties
from openpyxl.worksheet.worksheet import Worksheet

from examples.export_service.documents.content import Cell, Column, Document, Kind, shown

NUMBER_FORMATS: dict[Kind, str] = {
    "text": "@",
    "count": "#,##0",
    "money": "#,##0.00",
    "weight": "#,##0.00",
    "rate": "#,##0.0000",
    "percent": 'General" %"',  # unlike 0.## it leaves no lone point behind a whole number
    "date": "d mmm yyyy",
}
ACCENT = "14606B"
HEADER_ROW = 4
#: In characters: a wider table would be too small to read on an upright page.
PORTRAIT_WIDTH = 110
#: Of the texts on the second sheet, in characters.
TEXT_WIDTH = 80
LINE_HEIGHT = 15.0
TITLE_FONT = Font(name="Calibri", size=16, bold=True, color=ACCENT)
SOFT_FONT = Font(name="Calibri", color="5C6B7A")
BOLD_FONT = Font(name="Calibri", bold=True)
HEADER_FONT = Font(name="Calibri", bold=True, color="FFFFFF")
HEADER_FILL = PatternFill("solid", fgColor=ACCENT)
LINE = Border(bottom=Side("thin", color="D5DCE3"))
STRONG_LINE = Border(top=Side("medium", color=ACCENT))
WRAPPED = Alignment(wrap_text=True, vertical="top", horizontal="left", indent=1)
WRAPPED_RIGHT = Alignment(wrap_text=True, vertical="top", horizontal="right")
TOP = Alignment(vertical="top")


def render(document: Document) -> bytes:
    book = Workbook()
    sheet = book.active
    if not isinstance(sheet, Worksheet):
        raise TypeError(f"a new workbook starts with {type(sheet).__name__} instead of a worksheet")
    sheet.title = "Lines"
    _table(sheet, document)
    sheet.print_title_rows = f"{HEADER_ROW}:{HEADER_ROW}"
    details = book.create_sheet("Details")
    _details(details, document)
    for each in (sheet, details):
        _print_setup(each, document)
    book.properties.title = document.title
    book.properties.creator = document.sender.name
    file = io.BytesIO()
    book.save(file)
    return file.getvalue()


def _table(sheet: Worksheet, document: Document) -> None:
    _put(sheet, 1, 1, document.title).font = TITLE_FONT
    _put(sheet, 2, 1, f"{document.customer} · {shown(document.issued, 'date')}").font = SOFT_FONT
    for number, column in enumerate(document.columns, start=1):
        cell = _put(sheet, HEADER_ROW, number, column.heading)
        cell.font, cell.fill = HEADER_FONT, HEADER_FILL
        cell.alignment = WRAPPED_RIGHT if column.to_the_right else WRAPPED
        sheet.column_dimensions[get_column_letter(number)].width = _width(document, number - 1, column)
    for row_number, row in enumerate(document.rows, start=HEADER_ROW + 1):
        for number, (column, value) in enumerate(zip(document.columns, row, strict=True), start=1):
            cell = _put(sheet, row_number, number, value, column.kind)
            cell.border = LINE
            cell.alignment = TOP if column.to_the_right else WRAPPED
    last = HEADER_ROW + len(document.rows)
    width = len(document.columns)
    for row_number, total in enumerate(document.totals, start=last + 2):
        label = _put(sheet, row_number, width - 1, " ".join(filter(None, (total.label, total.unit))))
        label.alignment = Alignment(horizontal="right")
        figure = _put(sheet, row_number, width, total.value, total.kind)
        if total.strong:
            label.font = figure.font = BOLD_FONT
            for number in range(max(1, width - 3), width + 1):
                sheet.cell(row_number, number).border = STRONG_LINE
    sheet.freeze_panes = f"A{HEADER_ROW + 1}"
    sheet.auto_filter.ref = f"A{HEADER_ROW}:{get_column_letter(width)}{last}"


def _width(document: Document, index: int, column: Column) -> float:
    longest = max((len(shown(row[index], column.kind)) for row in document.rows), default=0)
    # Long texts wrap; a number that does not fit would show as ####.  The heading has a filter button beside it.
    last = index == len(document.columns) - 1
    totals = max((len(shown(total.value, total.kind)) for total in document.totals), default=0) if last else 0
    return max(min(max(longest, totals), 44) + 3, min(len(column.heading), 24) + 5)


def _print_setup(sheet: Worksheet, document: Document) -> None:
    sheet.page_setup.paperSize = 9  # A4 in the numbering of ECMA-376, 18.3.1.63
    width = sum(dimension.width for dimension in sheet.column_dimensions.values())
    sheet.page_setup.orientation = "landscape" if width > PORTRAIT_WIDTH else "portrait"
    sheet.page_setup.fitToWidth, sheet.page_setup.fitToHeight = 1, 0
    sheet.sheet_properties.pageSetUpPr = PageSetupProperties(fitToPage=True)
    footer: Any = sheet.oddFooter
    footer.left.text = document.number.replace("&", "&&")
    footer.right.text = "Page &P of &N"


def _details(sheet: Worksheet, document: Document) -> None:
    facts: list[tuple[str, str]] = [("Document", document.title), *document.facts]
    facts += [("Customer" if not number else "", line) for number, line in enumerate(document.address)]
    facts += [("Note", text) for text in (*document.opening, *document.closing)]
    facts += [("From" if not number else "", line) for number, line in enumerate(document.sender.address)]
    for number, (label, text) in enumerate(facts, start=1):
        cell = _put(sheet, number, 1, label)
        cell.font, cell.alignment = BOLD_FONT, TOP
        _put(sheet, number, 2, text).alignment = WRAPPED
        # Nobody but Excel fits the height of a row to its text on opening.
        sheet.row_dimensions[number].height = LINE_HEIGHT * (1 + len(text) // TEXT_WIDTH)
    sheet.column_dimensions["A"].width, sheet.column_dimensions["B"].width = 18, TEXT_WIDTH


def _put(sheet: Worksheet, row: int, column: int, value: Cell, kind: Kind = "text") -> Any:
    cell: Any = sheet.cell(row, column)
    cell.value = value
    if isinstance(value, str):
        # openpyxl takes a text that starts with "=" for a formula; quotePrefix keeps Excel from doing so on editing.
        cell.data_type = "s"
        cell.style = "Normal"
        cell.quotePrefix = value[:1] in "=+-@"
    elif value is not None:
        cell.number_format = NUMBER_FORMATS[kind]
    return cell
