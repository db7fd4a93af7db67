"""Make the Word templates again: ``python -m examples.export_service.documents.make_docx_templates``.

Each gets its columns from the document.yaml beside it.  What was changed in a template by hand is lost.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime

import yaml
from docx import Document as new_word_document
from docx.document import Document as WordDocument
from docx.enum.section import WD_SECTION
from docx.enum.style import WD_STYLE_TYPE
from docx.enum.table import WD_TABLE_ALIGNMENT
from docx.enum.text import WD_ALIGN_PARAGRAPH, WD_TAB_ALIGNMENT
from docx.oxml import OxmlElement
from docx.oxml.ns import qn
from docx.oxml.xmlchemy import BaseOxmlElement
from docx.shared import Mm, Pt, RGBColor
from docx.table import Table, _Cell, _Row
from docx.text.paragraph import Paragraph

from examples.export_service.documents.template import TEMPLATES

ACCENT = RGBColor(0x14, 0x60, 0x6B)
SOFT = RGBColor(0x5C, 0x6B, 0x7A)
TEXT_WIDTH = Mm(174)
TABLE_STYLE = "Table text"
#: Stands in every document that is made from the template, so it is not the time of making the template.
MADE = datetime(2026, 1, 1)


def main() -> None:
    for source in sorted(TEMPLATES.glob("*/document.yaml")):
        columns = yaml.safe_load(source.read_text("utf-8"))["columns"]
        _word_template(columns).save(str(source.with_suffix(".docx")))


def _word_template(columns: list[dict[str, str]]) -> WordDocument:
    document = new_word_document()
    _page(document)
    _letterhead(document)
    _parties(document)
    _paragraph(document, "{{ doc.title }}", size=16, bold=True, before=18, after=6, keep=True)
    _repeated(document, "doc.opening")
    _lines(document, columns)
    _totals(document)
    _repeated(document, "doc.closing")
    properties = document.core_properties
    properties.title, properties.author, properties.comments = "{{ doc.title }}", "{{ doc.sender.name }}", ""
    properties.created = properties.modified = MADE
    _drop_thumbnail(document)
    return document


def _drop_thumbnail(document: WordDocument) -> None:
    # The document that python-docx starts from brings a picture of itself, which file managers would show for ours.
    relations = document.part.package.rels
    for number in [number for number, relation in relations.items() if relation.reltype.endswith("/thumbnail")]:
        del relations[number]


def _page(document: WordDocument) -> None:
    section = document.sections[0]
    section.start_type = WD_SECTION.NEW_PAGE
    section.page_width, section.page_height = Mm(210), Mm(297)
    section.left_margin = section.right_margin = Mm(18)
    section.top_margin, section.bottom_margin = Mm(32), Mm(32)
    section.header_distance = section.footer_distance = Mm(12)
    normal = document.styles["Normal"]
    normal.font.name, normal.font.size = "Arial", Pt(9.5)
    # Without it a Word set to an Asian language takes another typeface for the same text.
    normal.element.get_or_add_rPr().get_or_add_rFonts().set(qn("w:eastAsia"), "Arial")
    normal.paragraph_format.space_after = Pt(0)
    table_text = document.styles.add_style(TABLE_STYLE, WD_STYLE_TYPE.PARAGRAPH)
    table_text.base_style, table_text.font.size = normal, Pt(8.5)


def _letterhead(document: WordDocument) -> None:
    section = document.sections[0]
    head = section.header.paragraphs[0]
    head.style = document.styles["Normal"]  # the style of headers has a tab stop in the middle
    head.paragraph_format.tab_stops.add_tab_stop(TEXT_WIDTH, WD_TAB_ALIGNMENT.RIGHT)
    _run(head, "{{ doc.sender.name }}", size=15, bold=True, color=ACCENT)
    _run(head, "\t{{ doc.sender.claim }}", size=8.5, color=SOFT)
    _border(head, "bottom", 18)
    footer = section.footer
    table = footer.add_table(1, 4, TEXT_WIDTH)
    _widths(table, (42, 42, 46, 44))
    for number, cell in enumerate(table.rows[0].cells[:3]):
        for line in range(3):
            paragraph = cell.paragraphs[0] if line == 0 else cell.add_paragraph()
            _run(paragraph, f"{{{{ doc.sender.footer[{number}][{line}] }}}}", size=7.5, color=SOFT)
    last = table.rows[0].cells[3]
    title = _run(last.paragraphs[0], "{{ doc.title }}", size=7.5, color=SOFT)
    page = last.add_paragraph()
    title.alignment = page.alignment = WD_ALIGN_PARAGRAPH.RIGHT
    for text, field in (("Page ", "PAGE"), (" of ", "NUMPAGES")):
        _run(page, text, size=7.5, color=SOFT)
        _field(page, field)
    # A footer keeps its first paragraph, which would stand above the table, and must end with one.
    first = footer.paragraphs[0]
    _border(first, "top", 4)
    first.paragraph_format.space_before = Pt(0)
    footer.add_paragraph().paragraph_format.line_spacing = Pt(1)


def _parties(document: WordDocument) -> None:
    table = document.add_table(1, 2)
    _widths(table, (104, 70))
    left, right = table.rows[0].cells
    _run(left.paragraphs[0], "{{ doc.sender.return_address }}", size=7, color=SOFT)
    left.paragraphs[0].paragraph_format.space_after = Pt(6)
    _marked(left, "{%p for line in doc.address %}")
    _run(left.add_paragraph(), "{{ line }}")
    _marked(left, "{%p endfor %}")
    facts = right.add_table(3, 2)
    _widths(facts, (30, 40))
    _loop(facts, 0, "{%tr for label, text in doc.facts %}")
    _run(facts.rows[1].cells[0].paragraphs[0], "{{ label }}", color=SOFT)
    _run(facts.rows[1].cells[1].paragraphs[0], "{{ text }}").alignment = WD_ALIGN_PARAGRAPH.RIGHT
    _loop(facts, 2, "{%tr endfor %}")
    right._tc.remove(right.paragraphs[0]._p)
    right.add_paragraph().paragraph_format.line_spacing = Pt(1)


def _lines(document: WordDocument, columns: list[dict[str, str]]) -> None:
    table = document.add_table(4, len(columns))
    table.alignment = WD_TABLE_ALIGNMENT.CENTER
    shares = [float(column.get("width", 10)) for column in columns]
    _widths(table, [174 * share / sum(shares) for share in shares])
    _loop(table, 1, "{%tr for row in rows %}")
    _loop(table, 3, "{%tr endfor %}")
    for number, column in enumerate(columns):
        right = column.get("kind", "text") not in ("text", "date")
        head, cell = table.rows[0].cells[number], table.rows[2].cells[number]
        for place, text, bold in ((head, column["heading"], True), (cell, f"{{{{ row.{column['field']} }}}}", False)):
            # The style and not only the run: a paragraph whose text comes out empty is as high as its style says.
            place.paragraphs[0].style = document.styles[TABLE_STYLE]
            paragraph = _run(place.paragraphs[0], text, size=8.5, bold=bold)
            paragraph.alignment = WD_ALIGN_PARAGRAPH.RIGHT if right else WD_ALIGN_PARAGRAPH.LEFT
            paragraph.paragraph_format.space_before = paragraph.paragraph_format.space_after = Pt(2.5)
        _cell_border(head, "bottom", 12, "14606B")
        _cell_border(cell, "bottom", 4, "D5DCE3")
    _row_property(table.rows[0], "w:cantSplit")
    _row_property(table.rows[0], "w:tblHeader")
    _row_property(table.rows[2], "w:cantSplit")


def _totals(document: WordDocument) -> None:
    _paragraph(document, "", size=4, keep=True)
    table = document.add_table(3, 2)
    table.alignment = WD_TABLE_ALIGNMENT.RIGHT
    _widths(table, (60, 36))
    _loop(table, 0, "{%tr for total in doc.totals %}")
    _loop(table, 2, "{%tr endfor %}")
    for cell, name in zip(table.rows[1].cells, ("label", "text"), strict=True):
        paragraph = cell.paragraphs[0]
        paragraph.alignment = WD_ALIGN_PARAGRAPH.RIGHT if name == "text" else WD_ALIGN_PARAGRAPH.LEFT
        paragraph.paragraph_format.space_after = Pt(2)
        paragraph.paragraph_format.keep_with_next = True
        _run(paragraph, "{% if total.strong %}")
        _run(paragraph, f"{{{{ total.{name} }}}}", size=11, bold=True, color=ACCENT)
        _run(paragraph, "{% else %}")
        _run(paragraph, f"{{{{ total.{name} }}}}")
        _run(paragraph, "{% endif %}")
    _row_property(table.rows[1], "w:cantSplit")


def _repeated(document: WordDocument, texts: str) -> None:
    _paragraph(document, f"{{%p for text in {texts} %}}")
    _paragraph(document, "{{ text }}", before=6, after=4).paragraph_format.keep_together = True
    _paragraph(document, "{%p endfor %}")


def _paragraph(
    document: WordDocument,
    text: str,
    *,
    size: float = 9.5,
    bold: bool = False,
    before: float = 0,
    after: float = 0,
    keep: bool = False,
) -> Paragraph:
    paragraph = document.add_paragraph()
    paragraph.paragraph_format.space_before, paragraph.paragraph_format.space_after = Pt(before), Pt(after)
    paragraph.paragraph_format.keep_with_next = keep
    return _run(paragraph, text, size=size, bold=bold)


def _run(
    paragraph: Paragraph, text: str, *, size: float = 9.5, bold: bool = False, color: RGBColor | None = None
) -> Paragraph:
    run = paragraph.add_run(text)
    run.font.size, run.font.bold = Pt(size), bold
    if color is not None:
        run.font.color.rgb = color
    return paragraph


def _marked(cell: _Cell, text: str) -> None:
    cell.add_paragraph().add_run(text)


def _loop(table: Table, row: int, text: str) -> None:
    table.rows[row].cells[0].paragraphs[0].add_run(text)


def _widths(table: Table, millimetres: Iterable[float]) -> None:
    table.autofit = False
    margins = OxmlElement("w:tblCellMar")
    for side in ("left", "right"):
        margin = OxmlElement(f"w:{side}")
        margin.set(qn("w:w"), "50")  # twentieths of a point, about 0.9 mm
        margin.set(qn("w:type"), "dxa")
        margins.append(margin)
    table._tbl.tblPr.insert_element_before(margins, "w:tblLook", "w:tblCaption", "w:tblDescription")
    for column, width in zip(table.columns, millimetres, strict=True):
        column.width = Mm(width)
        for cell in column.cells:
            cell.width = Mm(width)


def _row_property(row: _Row, name: str) -> None:
    row._tr.get_or_add_trPr().append(OxmlElement(name))


def _border(paragraph: Paragraph, side: str, eighths: int) -> None:
    borders = OxmlElement("w:pBdr")
    borders.append(_line(side, eighths, "14606B"))
    paragraph._p.get_or_add_pPr().insert_element_before(borders, "w:shd", "w:tabs", "w:spacing", "w:jc", "w:rPr")


def _cell_border(cell: _Cell, side: str, eighths: int, color: str) -> None:
    borders = OxmlElement("w:tcBorders")
    borders.append(_line(side, eighths, color))
    cell._tc.get_or_add_tcPr().append(borders)


def _line(side: str, eighths: int, color: str) -> BaseOxmlElement:
    line = OxmlElement(f"w:{side}")
    for name, value in (("val", "single"), ("sz", str(eighths)), ("space", "4"), ("color", color)):
        line.set(qn(f"w:{name}"), value)
    return line


def _field(paragraph: Paragraph, instruction: str) -> None:
    field = OxmlElement("w:fldSimple")
    field.set(qn("w:instr"), instruction)
    run = paragraph.add_run("1")
    run.font.size, run.font.color.rgb = Pt(7.5), SOFT
    field.append(run._r)
    paragraph._p.append(field)


if __name__ == "__main__":
    main()
