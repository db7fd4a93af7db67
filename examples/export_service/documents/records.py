"""The data that documents are made of, and every figure that is computed from it.

Amounts are decimals with two places, rounded half up as commerce does; the data holds quantities, prices and rates,
never a sum.  Each record has what all documents need (number, issued, customer, lines, totals) and what is its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date, timedelta
from decimal import ROUND_HALF_UP, Decimal
from itertools import accumulate
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints

from examples.export_service.documents.content import Total


def cents(amount: Decimal) -> Decimal:
    """The amount with two places, halves away from zero."""
    return amount.quantize(Decimal("0.01"), ROUND_HALF_UP)


def _printable(text: str) -> str:
    # XML, and so docx and xlsx, has no place for control characters; a line break in a cell would break its row.
    return "".join(character if character.isprintable() else " " for character in text).strip()


Text = Annotated[str, AfterValidator(_printable), StringConstraints(min_length=1, max_length=500)]
Currency = Annotated[str, StringConstraints(pattern=r"^[A-Z]{3}$")]
Price = Annotated[Decimal, Field(ge=0, lt=10_000_000)]
Balance = Annotated[Decimal, Field(gt=-1_000_000_000, lt=1_000_000_000)]
Percent = Annotated[Decimal, Field(ge=0, le=100)]
Quantity = Annotated[int, Field(gt=0, lt=1_000_000)]


class Record(BaseModel):
    model_config = ConfigDict(frozen=True)


class Customer(Record):
    number: Text
    name: Text
    department: Text | None = None
    street: Text
    town: Text
    country: Text
    vat_id: Text | None = None

    @property
    def address(self) -> tuple[str, ...]:
        lines = (self.name, self.department, self.street, self.town, self.country)
        return tuple(line for line in lines if line is not None)


class InvoiceLine(Record):
    article: Text
    description: Text
    quantity: Quantity
    unit: Text
    price: Price
    discount_percent: Percent = Decimal(0)
    vat_percent: Percent

    @property
    def discount(self) -> Decimal | None:
        return self.discount_percent or None

    @property
    def amount(self) -> Decimal:
        return cents(self.price * self.quantity * (100 - self.discount_percent) / 100)


class Invoice(Record):
    number: Text
    issued: date
    customer: Customer
    order_number: Text
    delivered: date
    payment_days: Annotated[int, Field(ge=0, le=365)]
    currency: Currency
    vat_note: Text | None = None
    lines: Annotated[tuple[InvoiceLine, ...], Field(min_length=1)]

    @property
    def due(self) -> date:
        return self.issued + timedelta(days=self.payment_days)

    @property
    def net(self) -> Decimal:
        return sum((line.amount for line in self.lines), Decimal("0.00"))

    @property
    def net_by_vat_percent(self) -> Mapping[Decimal, Decimal]:
        rates = sorted({line.vat_percent for line in self.lines}, reverse=True)
        return {
            rate: sum((line.amount for line in self.lines if line.vat_percent == rate), Decimal("0.00"))
            for rate in rates
        }

    @property
    def gross(self) -> Decimal:
        # Tax is rounded once for each rate, on the sum: rounding it on each line would drift from the tax return.
        return self.net + sum(cents(net * rate / 100) for rate, net in self.net_by_vat_percent.items())

    @property
    def totals(self) -> tuple[Total, ...]:
        taxes = tuple(
            Total(f"VAT {rate.normalize():f} % on {net:,.2f}", cents(net * rate / 100), "money", self.currency)
            for rate, net in self.net_by_vat_percent.items()
        )
        return (
            Total("Net amount", self.net, "money", self.currency),
            *taxes,
            Total("Amount due", self.gross, "money", self.currency, strong=True),
        )


class DeliveryLine(Record):
    article: Text
    description: Text
    quantity: Quantity
    unit: Text
    unit_weight: Price
    batch: Text

    @property
    def weight(self) -> Decimal:
        return cents(self.unit_weight * self.quantity)


class DeliveryNote(Record):
    number: Text
    issued: date
    customer: Customer
    order_number: Text
    carrier: Text
    delivery_terms: Text
    pallets: Annotated[int, Field(ge=1)]
    lines: Annotated[tuple[DeliveryLine, ...], Field(min_length=1)]

    @property
    def totals(self) -> tuple[Total, ...]:
        return (
            Total("Pallets", self.pallets, "count"),
            Total("Units", sum(line.quantity for line in self.lines), "count"),
            Total("Gross weight", sum((line.weight for line in self.lines), Decimal(0)), "weight", "kg", strong=True),
        )


class OfferedArticle(Record):
    category: Text
    article: Text
    description: Text
    unit: Text
    minimum_quantity: Quantity
    list_price: Price
    price: Price


class ListedArticle(Record):
    category: Text
    article: Text
    description: Text
    unit: Text
    minimum_quantity: Quantity
    list_price: Price


class PriceList(Record):
    number: Text
    issued: date
    valid_until: date
    customer: Customer
    currency: Currency
    discount_percent: Percent
    articles: Annotated[tuple[ListedArticle, ...], Field(min_length=1)]

    @property
    def lines(self) -> tuple[OfferedArticle, ...]:
        factor = (100 - self.discount_percent) / 100
        return tuple(
            OfferedArticle(price=cents(article.list_price * factor), **article.model_dump())
            for article in sorted(self.articles, key=lambda article: (article.category, article.article))
        )

    @property
    def totals(self) -> tuple[Total, ...]:
        return (Total("Articles in this list", len(self.articles), "count", strong=True),)


class Entry(Record):
    """``amount`` is what the customer owes by it: positive for an invoice, negative for a payment or a credit note."""

    posted: date
    reference: Text
    text: Text
    amount: Balance


class PostedEntry(Entry):
    balance: Decimal

    @property
    def charge(self) -> Decimal | None:
        return self.amount if self.amount > 0 else None

    @property
    def credit(self) -> Decimal | None:
        return -self.amount if self.amount < 0 else None


class AccountStatement(Record):
    number: Text
    issued: date
    period_start: date
    period_end: date
    customer: Customer
    currency: Currency
    opening_balance: Balance
    entries: tuple[Entry, ...]

    @property
    def lines(self) -> tuple[PostedEntry, ...]:
        entries = sorted(self.entries, key=lambda entry: entry.posted)
        balances = accumulate((entry.amount for entry in entries), initial=self.opening_balance)
        next(balances)
        return tuple(
            PostedEntry(balance=balance, **entry.model_dump()) for entry, balance in zip(entries, balances, strict=True)
        )

    @property
    def closing_balance(self) -> Decimal:
        return self.opening_balance + sum(entry.amount for entry in self.entries)

    @property
    def totals(self) -> tuple[Total, ...]:
        charges = sum((entry.amount for entry in self.entries if entry.amount > 0), Decimal("0.00"))
        credits = sum((entry.amount for entry in self.entries if entry.amount < 0), Decimal("0.00"))
        return (
            Total("Opening balance", self.opening_balance, "money", self.currency),
            Total("Charges", charges, "money", self.currency),
            Total("Payments and credit notes", credits, "money", self.currency),
            Total("Closing balance", self.closing_balance, "money", self.currency, strong=True),
        )


class ForeignItem(Record):
    """``rate`` is how much of ``currency`` one unit of the report's currency buys."""

    reference: Text
    due: date
    currency: Currency
    amount: Price
    rate: Annotated[Decimal, Field(gt=0)]

    @property
    def value(self) -> Decimal:
        return cents(self.amount / self.rate)


class ExchangeReport(Record):
    number: Text
    issued: date
    customer: Customer
    currency: Currency
    lines: Annotated[tuple[ForeignItem, ...], Field(min_length=1)]

    @property
    def totals(self) -> tuple[Total, ...]:
        value = sum((line.value for line in self.lines), Decimal("0.00"))
        return (Total(f"Open items in {self.currency}", value, "money", self.currency, strong=True),)


class AgreedArticle(Record):
    article: Text
    description: Text
    yearly_quantity: Quantity
    unit: Text
    price: Price

    @property
    def amount(self) -> Decimal:
        return cents(self.price * self.yearly_quantity)


class Contract(Record):
    number: Text
    issued: date
    starts: date
    ends: date
    customer: Customer
    currency: Currency
    lines: Annotated[tuple[AgreedArticle, ...], Field(min_length=1)]

    @property
    def totals(self) -> tuple[Total, ...]:
        value = sum((line.amount for line in self.lines), Decimal("0.00"))
        return (Total("Value of one year", value, "money", self.currency, strong=True),)


AnyRecord = Invoice | DeliveryNote | PriceList | AccountStatement | ExchangeReport | Contract

#: What the data of each template is read as.
RECORDS: Mapping[str, type[AnyRecord]] = {
    "invoice": Invoice,
    "delivery_note": DeliveryNote,
    "price_list": PriceList,
    "account_statement": AccountStatement,
    "exchange_report": ExchangeReport,
    "legacy_contract": Contract,
}
