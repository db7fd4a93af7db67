"""DOCX: fills in ``templates/<template_id>/document.docx``, which is edited in a word processor.

The placeholders are those of docxtpl, which also mends what word processors make of them (one placeholder split over
several runs).  A template is mended and compiled once; docxtpl by itself would do it again for each document.
"""

from __future__ import annotations

import io
import re
import zipfile
from dataclasses import dataclass
from functools import cache

from docxtpl import DocxTemplate
from jinja2 import Environment, StrictUndefined, Template

from examples.export_service.documents.content import Document
from examples.export_service.documents.template import TEMPLATES

#: The oldest time that a zip file can hold: without a fixed one the same document would be other bytes each time.
EPOCH = (1980, 1, 1, 0, 0, 0)


@dataclass(frozen=True, slots=True)
class _Part:
    name: str
    content: Template | bytes


def render(document: Document) -> bytes:
    rows = document.texts_by_field()
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=6) as package:
        for part in _parts(document.template_id):
            content = part.content
            if isinstance(content, Template):
                content = content.render(doc=document, rows=rows).encode()
            package.writestr(zipfile.ZipInfo(part.name, EPOCH), content, zipfile.ZIP_DEFLATED)
    return file.getvalue()


@cache
def _parts(template_id: str) -> tuple[_Part, ...]:
    path = TEMPLATES / template_id / "document.docx"
    mender = DocxTemplate(path)
    environment = Environment(autoescape=True, undefined=StrictUndefined)
    with zipfile.ZipFile(path) as package:
        contents = {name: package.read(name) for name in package.namelist()}
    return tuple(
        _Part(
            name,
            environment.from_string(mender.patch_xml(_plain_quotes(content)))
            if _has_placeholders(name, content)
            else content,
        )
        for name, content in contents.items()
    )


def _plain_quotes(content: bytes) -> str:
    # LibreOffice writes quotes as entities, in placeholders too; docxtpl turns back all entities but this one.
    return content.decode().replace("&apos;", "'")


def _has_placeholders(name: str, content: bytes) -> bool:
    return name.endswith(".xml") and re.search(rb"\{(<[^>]*>)*[{%]", content) is not None
