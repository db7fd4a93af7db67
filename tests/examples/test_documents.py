"""The documents of examples/export_service, read back with other programs than those that wrote them."""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from datetime import date, datetime
from decimal import ROUND_HALF_UP, Decimal
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, TypeAlias

import docx
import openpyxl
import pytest
from docx.oxml.ns import qn
from docx.text.paragraph import Paragraph
from pypdf import PageObject, PdfReader
from reportlab.pdfbase.ttfonts import TTFont

from examples.export_service.data import generate
from examples.export_service.documents import FORMATS, TemplateBroken, UnknownTemplate, render
from examples.export_service.documents.pdf_file import FONTS

ROOT = Path(__file__).resolve().parents[2]
WORKING = ("invoice", "delivery_note", "price_list", "account_statement", "exchange_report")

Data: TypeAlias = Mapping[str, Any]


@pytest.fixture(scope="module")
def tasks() -> list[dict[str, Any]]:
    return [json.loads(line) for line in generate.TASKS.read_text("utf-8").splitlines()]


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "d1f0.part"


def longest(tasks: list[dict[str, Any]], template_id: str) -> dict[str, Any]:
    """The data with the most lines, of invoices with more than one rate of VAT."""
    of_template: list[dict[str, Any]] = [task["data"] for task in tasks if task["template_id"] == template_id]
    return max(
        of_template, key=lambda data: (len({line.get("vat_percent") for line in lines_of(data)}), len(lines_of(data)))
    )


def lines_of(data: Data) -> list[dict[str, Any]]:
    lines: list[dict[str, Any]] = next(data[name] for name in ("lines", "articles", "entries") if name in data)
    return lines


# The totals once more, from the data alone: nothing of the example computes here.


def cents(amount: Decimal) -> Decimal:
    return amount.quantize(Decimal("0.01"), ROUND_HALF_UP)


def gross(data: Data) -> Decimal:
    net: defaultdict[Decimal, Decimal] = defaultdict(Decimal)
    for line in data["lines"]:
        undiscounted = Decimal(line["price"]) * line["quantity"]
        discount = undiscounted * Decimal(line["discount_percent"]) / 100
        net[Decimal(line["vat_percent"])] += cents(undiscounted - discount)
    return sum((amount + cents(amount * rate / 100) for rate, amount in net.items()), Decimal(0))


def weight(data: Data) -> Decimal:
    return sum((Decimal(line["unit_weight"]) * line["quantity"] for line in data["lines"]), Decimal(0))


def closing_balance(data: Data) -> Decimal:
    return Decimal(data["opening_balance"]) + sum(Decimal(entry["amount"]) for entry in data["entries"])


def value(data: Data) -> Decimal:
    return sum((cents(Decimal(line["amount"]) / Decimal(line["rate"])) for line in data["lines"]), Decimal(0))


TOTALS: Mapping[str, tuple[str, Callable[[Data], str]]] = {
    "invoice": ("Amount due", lambda data: f"{gross(data):,.2f}"),
    "delivery_note": ("Gross weight", lambda data: f"{weight(data):,.2f}"),
    "price_list": ("Articles in this list", lambda data: str(len(data["articles"]))),
    "account_statement": ("Closing balance", lambda data: f"{closing_balance(data):,.2f}"),
    "exchange_report": ("Open items in EUR", lambda data: f"{value(data):,.2f}"),
}


# Readers: all the text of a document in the order of reading, one piece a line.


def read_docx(path: Path) -> Iterator[str]:
    document = docx.Document(str(path))
    for paragraph in document.element.body.iter(qn("w:p")):
        yield Paragraph(paragraph, document._body).text


def read_pdf(path: Path) -> Iterator[str]:
    for page in PdfReader(path).pages:
        yield page.extract_text()


def read_xlsx(path: Path) -> Iterator[str]:
    for sheet in openpyxl.load_workbook(io.BytesIO(path.read_bytes())):
        for row in sheet.iter_rows(values_only=True):
            yield from (piece(cell) for cell in row if cell is not None)


def read_csv(path: Path) -> Iterator[str]:
    for row in csv.reader(io.StringIO(path.read_bytes().decode("utf-8-sig"), newline="")):
        yield from (piece(Decimal(cell)) if re.fullmatch(r"-?\d+\.\d\d", cell) else cell for cell in row)


def piece(cell: object) -> str:
    return f"{cell:,.2f}" if isinstance(cell, float | Decimal) else str(cell)


class Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: Counter[str] = Counter()
        self.texts: list[str] = []

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.tags[tag] += 1

    def handle_data(self, data: str) -> None:
        self.texts.append(data.strip())


def read_html(path: Path) -> Iterator[str]:
    page = Page()
    page.feed(path.read_text("utf-8"))
    yield from page.texts


READERS: Mapping[str, Callable[[Path], Iterator[str]]] = {
    "docx": read_docx,
    "pdf": read_pdf,
    "xlsx": read_xlsx,
    "csv": read_csv,
    "html": read_html,
}


def read(path: Path, output_format: str) -> str:
    return "\n".join(text for text in READERS[output_format](path) if text)


@pytest.mark.parametrize("output_format", FORMATS)
@pytest.mark.parametrize("template_id", WORKING)
def test_a_document_says_for_whom_it_is_and_what_the_total_is(
    template_id: str, output_format: str, tasks: list[dict[str, Any]], target: Path
) -> None:
    data = longest(tasks, template_id)
    label, total = TOTALS[template_id]

    render(template_id, data, output_format, target)

    text = read(target, output_format)
    assert data["number"] in text
    assert data["customer"]["name"] in text
    assert re.search(rf"{label}( EUR| [A-Z]{{3}}| kg)?\s+{re.escape(total(data))}(?![\d.,])", text), text[-600:]
    for line in lines_of(data):
        assert (line["article"] if "article" in line else line["reference"]) in text
    assert "{{" not in text and "{%" not in text


def test_every_task_of_the_data_file_becomes_a_document_but_for_the_legacy_contracts(
    tasks: list[dict[str, Any]], target: Path
) -> None:
    made: Counter[str] = Counter()
    broken: Counter[str] = Counter()
    for task in tasks:
        try:
            render(task["template_id"], task["data"], task["output_format"], target)
        except TemplateBroken:
            broken[task["template_id"]] += 1
        else:
            made[task["output_format"]] += 1
            assert target.stat().st_size > 500
            target.unlink()

    assert broken == {"legacy_contract": 6}
    assert made.total() >= 300
    assert set(made) == set(FORMATS) and min(made.values()) >= 50
    assert Counter(task["template_id"] for task in tasks)["exchange_report"] == 20
    numbers = [task["data"]["number"] for task in tasks]
    assert len(set(numbers)) == len(numbers)


def test_the_data_file_is_what_its_generator_makes() -> None:
    assert generate.TASKS.read_text("utf-8") == generate.tasks()


def test_the_typeface_of_the_pdf_has_every_character_of_the_data_file() -> None:
    text = generate.TASKS.read_text("utf-8")
    for name in ("Roboto-Regular", "Roboto-Bold"):
        known = TTFont(name, str(FONTS / f"{name}.ttf")).face.charToGlyph
        assert {character for character in text if character != "\n" and ord(character) not in known} == set()


def test_an_unknown_template_is_named_with_those_there_are(target: Path) -> None:
    with pytest.raises(UnknownTemplate, match=r"'../invoice'; there are account_statement, "):
        render("../invoice", {}, "pdf", target)


def test_an_unknown_format_is_named_with_those_there_are(target: Path) -> None:
    with pytest.raises(ValueError, match="'odt'; use one of docx, pdf, xlsx, csv, html"):
        render("invoice", {}, "odt", target)


@pytest.mark.parametrize("output_format", FORMATS)
def test_a_broken_template_names_all_fields_that_it_misses_and_writes_nothing(
    output_format: str, tasks: list[dict[str, Any]], target: Path
) -> None:
    target.write_text("what was there")

    with pytest.raises(
        TemplateBroken, match=r"customer\.contract_manager, termination_clause, which its data never has"
    ):
        render("legacy_contract", longest(tasks, "legacy_contract"), output_format, target)

    assert target.read_text() == "what was there"


def test_data_that_does_not_fit_is_refused_with_the_places_that_are_wrong(order: dict[str, Any], target: Path) -> None:
    del order["customer"]["name"]
    order["lines"][0]["quantity"] = "a few"

    with pytest.raises(TemplateBroken, match=r"invoice cannot use its data: customer\.name: .*; lines\.0\.quantity: "):
        render("invoice", order, "pdf", target)


def test_an_older_document_at_the_target_is_replaced(order: dict[str, Any], target: Path) -> None:
    target.write_bytes(b"x" * 1_000_000)

    render("invoice", order, "csv", target)

    assert target.stat().st_size < 10_000


@pytest.fixture
def order() -> dict[str, Any]:
    return {
        "number": "INV-1",
        "issued": "2026-03-31",
        "customer": {"number": "C-1", "name": "Żółć", "street": "Street 1", "town": "Town", "country": "Poland"},
        "order_number": "PO 1",
        "delivered": "2026-03-30",
        "payment_days": 30,
        "currency": "EUR",
        "lines": [
            {
                "article": "A-1",
                "description": "Washer",
                "quantity": 3,
                "unit": "pc",
                "price": "0.335",
                "vat_percent": "21",
            }
        ],
    }


def test_halves_of_a_cent_are_rounded_up_and_tax_is_rounded_once_for_each_rate(
    order: dict[str, Any], target: Path
) -> None:
    # Three at 0.335 are 1.005, so 1.01; less 10 % they are 0.9045, so 0.90.
    # 9 % of five at 0.05 are 0.0225, so 0.02; on each line it would be 0.0045, and so nothing.
    cheap = {**order["lines"][0], "quantity": 1, "price": "0.05", "vat_percent": "9"}
    discounted = {**order["lines"][0], "discount_percent": "10"}
    order["lines"] = [order["lines"][0], discounted, *[cheap] * 5]

    render("invoice", order, "csv", target)

    rows = list(csv.DictReader(io.StringIO(target.read_text("utf-8-sig"))))
    totals = [(row["Total"], row["Total value"], row["Total unit"]) for row in rows if row["Record"] == "total"]
    assert totals == [
        ("Net amount", "2.16", "EUR"),
        ("VAT 21 % on 1.91", "0.40", "EUR"),
        ("VAT 9 % on 0.25", "0.02", "EUR"),
        ("Amount due", "2.58", "EUR"),
    ]


def test_csv_is_what_excel_opens_by_a_double_click(order: dict[str, Any], target: Path) -> None:
    render("invoice", order, "csv", target)

    content = target.read_bytes()
    assert content.startswith(b"\xef\xbb\xbf")
    assert content.count(b"\r\n") == content.count(b"\n") == 1 + 1 + 3
    assert "Żółć".encode() in content


EVIL = ("=cmd|' /C calc'!A0", "+1+1", "-2+3", "@SUM(A1:A9)", "\t=1+1", " =1+1", "\r\n=1+1")


@pytest.mark.parametrize("evil", EVIL)
def test_a_text_that_looks_like_a_formula_stays_a_text_in_a_csv(evil: str, order: dict[str, Any], target: Path) -> None:
    order["customer"]["name"] = order["lines"][0]["description"] = evil

    render("invoice", order, "csv", target)

    row = next(csv.DictReader(io.StringIO(target.read_bytes().decode("utf-8-sig"), newline="")))
    assert row["Customer"] == row["Description"] == f"'{evil.strip()}"


@pytest.mark.parametrize("evil", EVIL)
def test_a_text_that_looks_like_a_formula_stays_a_text_in_a_spreadsheet(
    evil: str, order: dict[str, Any], target: Path
) -> None:
    order["customer"]["name"] = order["lines"][0]["description"] = evil

    render("invoice", order, "xlsx", target)

    book = openpyxl.load_workbook(io.BytesIO(target.read_bytes()))
    cells = [cell for sheet in book for row in sheet.iter_rows() for cell in row if cell.value == evil.strip()]
    assert len(cells) == 2
    assert all(cell.data_type == "s" and cell.quotePrefix for cell in cells)
    assert not [cell for sheet in book for row in sheet.iter_rows() for cell in row if cell.data_type == "f"]


def test_a_negative_balance_stays_a_number(tasks: list[dict[str, Any]], target: Path) -> None:
    data = {**longest(tasks, "account_statement"), "opening_balance": "-10.50", "entries": []}

    render("account_statement", data, "csv", target)

    assert target.read_text("utf-8-sig").splitlines()[-1].endswith(",Closing balance,-10.50," + data["currency"])


@pytest.mark.parametrize("output_format", ["html", "docx", "pdf"])
def test_markup_in_the_data_is_shown_and_not_obeyed(output_format: str, order: dict[str, Any], target: Path) -> None:
    markup = "<script>alert('&amp;')</script> {{ 7 * 7 }} {% endfor %}"
    order["customer"]["name"] = markup

    render("invoice", order, output_format, target)

    assert markup in read(target, output_format)
    if output_format == "html":
        page = Page()
        page.feed(target.read_text("utf-8"))
        assert page.tags["script"] == 0


@pytest.mark.parametrize("output_format", FORMATS)
def test_control_characters_do_not_spoil_a_document(output_format: str, order: dict[str, Any], target: Path) -> None:
    order["customer"]["name"] = "Bell\x07 and\x00 \ud800surrogate"

    render("invoice", order, output_format, target)

    assert "Bell  and" in read(target, output_format) or "Bell and" in read(target, output_format)


def test_a_character_that_the_typeface_lacks_becomes_a_question_mark_in_a_pdf(
    order: dict[str, Any], target: Path
) -> None:
    order["customer"]["name"] = "Acme 株式会社"

    render("invoice", order, "pdf", target)

    assert "Acme ????" in read(target, "pdf")


@pytest.mark.parametrize("lines", [1, 24, 25, 26, 27, 28, 29, 30, 31, 32, 33, 34, 200])
def test_a_long_pdf_repeats_its_header_and_keeps_its_totals_with_rows(
    lines: int, order: dict[str, Any], target: Path
) -> None:
    order["lines"] = [{**order["lines"][0], "article": f"A-{number:04}"} for number in range(lines)]

    render("invoice", order, "pdf", target)

    pages = [page.extract_text() for page in PdfReader(target).pages]
    assert re.findall(r"A-\d{4}", " ".join(pages)) == [f"A-{number:04}" for number in range(lines)]
    for number, page in enumerate(pages, start=1):
        assert f"Page {number} of {len(pages)}" in page
        assert "Description" in page and "INV-1" in page and "A-" in page
    assert ["Amount due" in page for page in pages] == [False] * (len(pages) - 1) + [True]
    for heights in map(heights_of_texts, PdfReader(target).pages):
        foot = next(height for text, height in heights.items() if text.startswith("Page "))
        body = [height for text, height in heights.items() if text.startswith(("A-", "Please pay", "remain our"))]
        assert min(body) > foot + 10


def heights_of_texts(page: PageObject) -> dict[str, float]:
    """The texts of the page, each with the distance of its baseline from the foot of the page in points."""
    heights: dict[str, float] = {}

    def note(text: str, _page: list[float], place: list[float], _font: object, _size: float) -> None:
        heights[text.strip()] = place[5]

    page.extract_text(visitor_text=note)
    return heights


def test_a_word_wider_than_its_column_is_broken(order: dict[str, Any], target: Path) -> None:
    order["lines"][0]["description"] = order["customer"]["name"] = "W" * 400

    render("invoice", order, "pdf", target)

    text = read(target, "pdf")
    assert text.count("W") > 400
    assert max(map(len, re.findall("W+", text))) < 60


def test_a_spreadsheet_has_numbers_and_dates_that_can_be_computed_with(
    tasks: list[dict[str, Any]], target: Path
) -> None:
    data = longest(tasks, "account_statement")

    render("account_statement", data, "xlsx", target)

    sheet = openpyxl.load_workbook(io.BytesIO(target.read_bytes()))["Lines"]
    posted, balance = sheet["A5"], sheet.cell(4 + len(data["entries"]), 6)
    assert isinstance(posted.value, datetime) and posted.value.date() == date.fromisoformat(
        data["entries"][0]["posted"]
    )
    assert isinstance(balance.value, int | float) and balance.number_format == "#,##0.00"
    assert cents(Decimal(str(balance.value))) == closing_balance(data)
    assert sheet.freeze_panes == "A5"
    assert sheet.print_title_rows == "$4:$4"


def test_the_same_data_makes_the_same_bytes_in_all_formats_but_spreadsheets(
    order: dict[str, Any], tmp_path: Path
) -> None:
    for output_format in set(FORMATS) - {"xlsx"}:
        first, second = tmp_path / "first", tmp_path / "second"
        render("invoice", order, output_format, first)
        render("invoice", order, output_format, second)
        assert first.read_bytes() == second.read_bytes(), output_format


BROKEN_BY_HAND = [
    ("invoice/document.yaml", "{{ doc.order_number }}", "{{ doc.order_number", "csv", "unexpected|expected"),
    ("invoice/document.yaml", "field: unit,", "field: units,", "csv", r"refers to lines\.units,"),
    ("invoice/document.yaml", "closing:", "closin:", "csv", "closin\n.*not permitted"),
    ("letter.html", "doc.sender.claim", "doc.sender.slogan", "html", "'slogan'"),
]


@pytest.mark.parametrize(("file", "old", "new", "output_format", "reason"), BROKEN_BY_HAND)
def test_a_template_that_was_broken_by_hand_says_what_is_wrong_with_it(
    file: str, old: str, new: str, output_format: str, reason: str, order: dict[str, Any], tmp_path: Path
) -> None:
    shutil.copytree(ROOT / "examples", tmp_path / "examples", ignore=shutil.ignore_patterns("__pycache__"))
    template = tmp_path / "examples/export_service/documents/templates" / file
    template.write_text(template.read_text("utf-8").replace(old, new), "utf-8")

    said = subprocess.run(
        [sys.executable, "-c", RENDER_ONE, output_format],
        input=json.dumps(order),
        text=True,
        cwd=tmp_path,
        capture_output=True,
        check=True,
        timeout=120,
    )

    assert re.search(rf"^template invoice .*({reason})", said.stdout, re.DOTALL)


RENDER_ONE = """
import json, sys
from pathlib import Path
from examples.export_service.documents import TemplateBroken, render

try:
    render("invoice", json.load(sys.stdin), sys.argv[1], Path("document.part"))
except TemplateBroken as error:
    print(error)
"""

EIGHT_THREADS_AT_ONCE = """
import json, sys, threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from examples.export_service.documents import render

jobs = [json.loads(line) for line in sys.stdin]
start = threading.Barrier(8)

def work(worker):
    start.wait()
    for number, job in enumerate(jobs):
        render(job["template_id"], job["data"], job["output_format"], Path(sys.argv[1], f"{worker}-{number}"))

with ThreadPoolExecutor(8) as pool:
    list(pool.map(work, range(8)))
"""


def test_threads_that_render_at_once_from_the_first_document_on_make_what_one_would(
    tasks: list[dict[str, Any]], tmp_path: Path
) -> None:
    jobs: list[dict[str, Any]] = [
        {"template_id": template_id, "data": longest(tasks, template_id), "output_format": output_format}
        for output_format in FORMATS
        for template_id in ("invoice", "account_statement")
    ]

    # A process of its own: in this one the templates and fonts may be loaded already, and loading is what races.
    subprocess.run(
        [sys.executable, "-c", EIGHT_THREADS_AT_ONCE, str(tmp_path)],
        input="\n".join(map(json.dumps, jobs)),
        text=True,
        cwd=ROOT,
        check=True,
        timeout=120,
    )

    for number, job in enumerate(jobs):
        alone = tmp_path / "alone"
        render(job["template_id"], job["data"], job["output_format"], alone)
        for worker in range(8):
            together = tmp_path / f"{worker}-{number}"
            if job["output_format"] == "xlsx":  # holds the time of its making
                assert list(read_xlsx(together)) == list(read_xlsx(alone))
            else:
                assert together.read_bytes() == alone.read_bytes(), job
