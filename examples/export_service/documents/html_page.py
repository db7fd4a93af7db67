"""HTML: one page that needs nothing else, for the screen and for paper."""

from __future__ import annotations

from functools import cache

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template

from examples.export_service.documents.content import Document
from examples.export_service.documents.template import TEMPLATES


def render(document: Document) -> bytes:
    return _page().render(doc=document, rows=document.texts()).encode()


@cache
def _page() -> Template:
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("letter.html")
