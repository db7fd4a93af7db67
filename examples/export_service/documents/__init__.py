"""Business documents from plain data: ``render("invoice", data, "pdf", Path("invoice.pdf"))``.

The wording and the columns of a document stand in ``templates/<template_id>/document.yaml``, the Word document in the
document.docx beside it, the HTML page in ``templates/letter.html`` and the sender in ``templates/letterhead.yaml``.
Open them, change them, render again.  Amounts, VAT and balances are computed in ``records.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from jinja2 import TemplateError
from pydantic import ValidationError
from yaml import YAMLError

from examples.export_service.documents import csv_file, html_page, pdf_file, spreadsheet, word_file
from examples.export_service.documents.content import Document
from examples.export_service.documents.template import TemplateBroken, UnknownTemplate, fill_in

__all__ = ["FORMATS", "TemplateBroken", "UnknownTemplate", "render"]

_RENDERERS: Mapping[str, Callable[[Document], bytes]] = {
    "docx": word_file.render,
    "pdf": pdf_file.render,
    "xlsx": spreadsheet.render,
    "csv": csv_file.render,
    "html": html_page.render,
}
FORMATS: tuple[str, ...] = tuple(_RENDERERS)


def render(template_id: str, data: Mapping[str, Any], output_format: str, target: Path) -> None:
    """Write the document to ``target``, whatever its suffix, over what is there.

    May be called from several threads at once.  A failure before the writing leaves ``target`` as it was; one in the
    middle of it, such as a full disk, leaves a part of the document: give it a name that nobody takes for the result.

    Raises UnknownTemplate if there is no such template, TemplateBroken if template and data can never make a document
    (the text names the fields), ValueError if the format is not one of FORMATS, OSError if the file cannot be written.
    """
    renderer = _RENDERERS.get(output_format)
    if renderer is None:
        raise ValueError(f"no renderer for format {output_format!r}; use one of {', '.join(FORMATS)}")
    try:
        content = renderer(fill_in(template_id, data))
    except (TemplateError, YAMLError, ValidationError) as error:
        raise TemplateBroken(f"template {template_id} cannot be used for {output_format}: {error}") from error
    target.write_bytes(content)
