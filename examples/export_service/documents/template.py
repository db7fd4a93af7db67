"""The wording of a document: reads ``templates/<template_id>/document.yaml`` and fills it in from a record."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, StrictUndefined, Template, nodes
from pydantic import BaseModel, ConfigDict, ValidationError

from examples.export_service.documents.content import Cell, Column, Document, Kind, Sender, shown
from examples.export_service.documents.records import RECORDS, AnyRecord

TEMPLATES = Path(__file__).parent / "templates"

#: The column that counts the rows; every other column shows a field of the line.
POSITION = "position"


class UnknownTemplate(Exception):
    """There is no template with this id."""


class TemplateBroken(Exception):
    """Template and data can never make a document; the text names the fields that are missing or wrong."""


class _ColumnSource(BaseModel):
    model_config = ConfigDict(extra="forbid")

    field: str
    heading: str
    kind: Kind = "text"
    width: float = 10


class _Source(BaseModel):
    """What stands in a document.yaml.  Texts may hold ``{{ doc.field }}``; one that comes out empty is left away."""

    model_config = ConfigDict(extra="forbid")

    title: str
    facts: dict[str, str]
    opening: list[str] = []
    columns: list[_ColumnSource]
    closing: list[str] = []


class _LetterheadSource(BaseModel):
    model_config = ConfigDict(extra="forbid")

    name: str
    claim: str
    address: tuple[str, ...]
    footer: tuple[tuple[str, ...], ...]


@dataclass(frozen=True, slots=True)
class _Wording:
    title: Template
    facts: tuple[tuple[str, Template], ...]
    opening: tuple[Template, ...]
    columns: tuple[Column, ...]
    closing: tuple[Template, ...]
    #: Dotted names below ``doc``, in the order in which they are used.
    fields: tuple[str, ...]


def fill_in(template_id: str, data: Mapping[str, Any]) -> Document:
    """The document that the template makes of the data.  Raises UnknownTemplate or TemplateBroken."""
    if template_id not in RECORDS:
        raise UnknownTemplate(f"there is no template {template_id!r}; there are {', '.join(sorted(RECORDS))}")
    try:
        record = RECORDS[template_id].model_validate(data)
    except ValidationError as error:
        raise TemplateBroken(f"template {template_id} cannot use its data: {_said(error)}") from None
    wording = _wording(template_id)
    missing = [field for field in wording.fields if not _has(record, field)]
    columns = [column.field for column in wording.columns if column.field != POSITION]
    missing += [f"lines.{field}" for field in columns for line in record.lines[:1] if not hasattr(line, field)]
    if missing:
        raise TemplateBroken(
            f"template {template_id} refers to {', '.join(missing)}, which its data never has; "
            f"correct templates/{template_id}/document.yaml"
        )
    customer = record.customer
    return Document(
        template_id=template_id,
        sender=_sender(),
        title=wording.title.render(doc=record),
        number=record.number,
        issued=record.issued,
        currency=getattr(record, "currency", None),
        customer_number=customer.number,
        customer=customer.name,
        address=customer.address,
        facts=tuple((label, text) for label, template in wording.facts if (text := template.render(doc=record))),
        opening=_paragraphs(wording.opening, record),
        columns=wording.columns,
        rows=tuple(_row(wording.columns, position, line) for position, line in enumerate(record.lines, start=1)),
        totals=record.totals,
        closing=_paragraphs(wording.closing, record),
    )


def _row(columns: tuple[Column, ...], position: int, line: object) -> tuple[Cell, ...]:
    return tuple(position if column.field == POSITION else getattr(line, column.field) for column in columns)


def _paragraphs(templates: tuple[Template, ...], record: AnyRecord) -> tuple[str, ...]:
    return tuple(text for template in templates if (text := template.render(doc=record)))


def _has(record: object, dotted: str) -> bool:
    for name in dotted.split("."):
        if not hasattr(record, name):
            return False
        record = getattr(record, name)
    return True


def _said(error: ValidationError) -> str:
    places = [f"{'.'.join(map(str, item['loc'])) or 'data'}: {item['msg']}" for item in error.errors()]
    more = [f"and {len(places) - 5} more"] if len(places) > 5 else []
    return "; ".join([*places[:5], *more])


@cache
def _sender() -> Sender:
    source = _LetterheadSource.model_validate(yaml.safe_load((TEMPLATES / "letterhead.yaml").read_text("utf-8")))
    return Sender(**source.model_dump())


@cache
def _wording(template_id: str) -> _Wording:
    source = _Source.model_validate(
        yaml.safe_load((TEMPLATES / template_id / "document.yaml").read_text("utf-8")),
    )
    # No autoescape: these texts are plain; a renderer whose format has markup escapes them itself.
    environment = Environment(undefined=StrictUndefined, autoescape=False)
    environment.filters["day"] = lambda value: shown(value, "date")
    environment.filters["money"] = lambda value: shown(value, "money")
    environment.filters["percent"] = lambda value: shown(value, "percent")
    texts = [source.title, *source.facts.values(), *source.opening, *source.closing]
    return _Wording(
        title=environment.from_string(source.title),
        facts=tuple((label, environment.from_string(text)) for label, text in source.facts.items()),
        opening=tuple(map(environment.from_string, source.opening)),
        columns=tuple(Column(**column.model_dump()) for column in source.columns),
        closing=tuple(map(environment.from_string, source.closing)),
        fields=tuple(dict.fromkeys(field for text in texts for field in _fields(environment.parse(text)))),
    )


def _fields(syntax: nodes.Template) -> Iterator[str]:
    for node in syntax.find_all(nodes.Getattr):
        names: list[str] = []
        inner: nodes.Node = node
        while isinstance(inner, nodes.Getattr):
            names.insert(0, inner.attr)
            inner = inner.node
        if isinstance(inner, nodes.Name) and inner.name == "doc":
            yield ".".join(names)
