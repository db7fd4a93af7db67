"""Make ``tasks.jsonl`` again: ``python -m examples.export_service.data.generate``.  The same seed, the same file."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from datetime import date, timedelta
from decimal import ROUND_HALF_UP, Decimal
from pathlib import Path
from typing import Any

from examples.export_service.data.catalogue import ARTICLES, BUYERS, EU, RATES, Article, Buyer

TASKS = Path(__file__).parent / "tasks.jsonl"
SEED = 20260401
FIRST_DAY = date(2026, 1, 5)
FORMATS = ("pdf", "xlsx", "docx", "csv", "html")
CARRIERS = ("Noordvracht", "Blauwe Lijn Transport", "Own lorry", "Collected by customer")


def main() -> None:
    TASKS.write_text(tasks(), encoding="utf-8")


def tasks() -> str:
    """The whole file: one JSON object a line, in the order in which a day's work might come in."""
    dice = random.Random(SEED)
    makers: list[tuple[str, int, Callable[[random.Random, int], dict[str, Any]]]] = [
        ("invoice", 120, _invoice),
        ("delivery_note", 70, _delivery_note),
        ("price_list", 40, _price_list),
        ("account_statement", 74, _account_statement),
        ("exchange_report", 20, _exchange_report),
        ("legacy_contract", 6, _legacy_contract),
    ]
    made = [
        {"template_id": template_id, "data": make(dice, number), "output_format": FORMATS[number % len(FORMATS)]}
        for template_id, count, make in makers
        for number in range(1, count + 1)
    ]
    dice.shuffle(made)
    return "".join(f"{json.dumps(task, ensure_ascii=False)}\n" for task in made)


def _invoice(dice: random.Random, number: int) -> dict[str, Any]:
    place, buyer = _buyer(dice)
    issued = _day(dice)
    rebate = dice.choice((0, 0, 0, 5, 10))
    lines = [
        {
            "article": article.number,
            "description": article.description,
            "quantity": _quantity(dice, article),
            "unit": article.unit,
            "price": str(_price(article.price, buyer.currency)),
            "discount_percent": str(rebate),
            "vat_percent": str(article.vat_percent if buyer.code == "NL" else 0),
        }
        for article in _articles(dice, number)
    ]
    return {
        "number": f"INV-2026-{number + 412:05}",
        "issued": issued.isoformat(),
        "customer": _customer(place, buyer),
        "order_number": f"PO {dice.randint(40000, 79999)}",
        "delivered": (issued - timedelta(days=dice.randint(1, 4))).isoformat(),
        "payment_days": dice.choice((14, 30, 30, 45)),
        "currency": buyer.currency,
        "vat_note": _vat_note(buyer),
        "lines": lines,
    }


def _delivery_note(dice: random.Random, number: int) -> dict[str, Any]:
    place, buyer = _buyer(dice)
    lines: list[dict[str, Any]] = [
        {
            "article": article.number,
            "description": article.description,
            "quantity": _quantity(dice, article),
            "unit": article.unit,
            "unit_weight": str(article.weight),
            "batch": f"B{dice.randint(250, 269)}{dice.choice('ACDFHK')}{dice.randint(10, 99)}",
        }
        for article in _articles(dice, number)
    ]
    weight = sum(Decimal(line["unit_weight"]) * line["quantity"] for line in lines)
    return {
        "number": f"DN-2026-{number + 1180:05}",
        "issued": _day(dice).isoformat(),
        "customer": _customer(place, buyer),
        "order_number": f"PO {dice.randint(40000, 79999)}",
        "carrier": dice.choice(CARRIERS),
        "delivery_terms": "Delivered, duty paid" if buyer.code == "NL" or buyer.code in EU else "Delivered at place",
        "pallets": int(weight // 400) + 1,
        "lines": lines,
    }


def _price_list(dice: random.Random, number: int) -> dict[str, Any]:
    place, buyer = _buyer(dice)
    issued = date(2026, dice.randint(1, 3), 1)
    offered = dice.sample(ARTICLES, dice.randint(9, 32))
    return {
        "number": f"PL-{issued:%Y-%m}-{number:03}",
        "issued": issued.isoformat(),
        "valid_until": date(2026, dice.choice((6, 9)), 30).isoformat(),
        "customer": _customer(place, buyer),
        "currency": buyer.currency,
        "discount_percent": dice.choice(("2.5", "5", "7.5", "10", "12.5")),
        "articles": [
            {
                "category": article.category,
                "article": article.number,
                "description": article.description,
                "unit": article.unit,
                "minimum_quantity": dice.choice((1, 5, 10, 20)),
                "list_price": str(_price(article.price, buyer.currency)),
            }
            for article in offered
        ],
    }


def _account_statement(dice: random.Random, number: int) -> dict[str, Any]:
    place, buyer = _buyer(dice)
    month = dice.randint(1, 3)
    start, end = date(2026, month, 1), date(2026, month + 1, 1) - timedelta(days=1)
    entries: list[dict[str, Any]] = []
    for _ in range(dice.choice((2, 4, 6, 9, 14, 38))):
        posted = start + timedelta(days=dice.randrange((end - start).days))
        owed = _price(Decimal(dice.randint(4000, 240000)) / 100, buyer.currency)
        reference = f"INV-2026-{dice.randint(1, 999):05}"
        entries.append(_entry(posted, reference, "Invoice", owed))
        paid = posted + timedelta(days=dice.randint(1, 20))
        if paid <= end:
            entries.append(_entry(paid, reference, "Payment received, thank you", -owed))
        elif dice.random() < 0.3:
            credit = _price(Decimal(dice.randint(500, 3900)) / 100, buyer.currency)
            entries.append(_entry(posted, f"CN-2026-{dice.randint(1, 99):05}", "Credit note, goods returned", -credit))
    opening = _price(Decimal(dice.choice((0, 0, dice.randint(1000, 300000)))) / 100, buyer.currency)
    return {
        "number": f"ST-{start:%Y-%m}-{number:03}",
        "issued": (end + timedelta(days=2)).isoformat(),
        "period_start": start.isoformat(),
        "period_end": end.isoformat(),
        "customer": _customer(place, buyer),
        "currency": buyer.currency,
        "opening_balance": str(opening),
        "entries": sorted(entries, key=lambda entry: str(entry["posted"])),
    }


def _exchange_report(dice: random.Random, number: int) -> dict[str, Any]:
    place, buyer = _buyer(dice)
    issued = _day(dice)
    currencies = dice.sample(sorted(RATES.keys() - {"EUR"}), dice.randint(2, 5))
    rates = {currency: _rate_of_a_day(dice, RATES[currency]) for currency in currencies}
    lines = []
    for currency in sorted(currencies):
        for _ in range(dice.randint(1, 4)):
            due = issued + timedelta(days=dice.randint(-20, 40))
            amount = _price(Decimal(dice.randint(9000, 480000)) / 100, currency)
            reference = f"INV-2026-{dice.randint(1, 999):05}"
            lines.append(
                {
                    "reference": reference,
                    "due": due.isoformat(),
                    "currency": currency,
                    "amount": str(amount),
                    "rate": str(rates[currency]),
                }
            )
    return {
        "number": f"FX-2026-{number:03}",
        "issued": issued.isoformat(),
        "customer": _customer(place, buyer),
        "currency": "EUR",
        "lines": lines,
    }


def _legacy_contract(dice: random.Random, number: int) -> dict[str, Any]:
    place, buyer = _buyer(dice)
    return {
        "number": f"FC-2019-{number:03}",
        "issued": date(2019, dice.randint(1, 12), 15).isoformat(),
        "starts": "2020-01-01",
        "ends": "2026-12-31",
        "customer": _customer(place, buyer),
        "currency": buyer.currency,
        "lines": [
            {
                "article": article.number,
                "description": article.description,
                "yearly_quantity": dice.randint(2, 20) * 50,
                "unit": article.unit,
                "price": str(_price(article.price, buyer.currency)),
            }
            for article in dice.sample(ARTICLES, 5)
        ],
    }


def _entry(posted: date, reference: str, text: str, amount: Decimal) -> dict[str, Any]:
    return {"posted": posted.isoformat(), "reference": reference, "text": text, "amount": str(amount)}


def _buyer(dice: random.Random) -> tuple[int, Buyer]:
    place = dice.randrange(len(BUYERS))
    return place, BUYERS[place]


def _customer(place: int, buyer: Buyer) -> dict[str, Any]:
    customer: dict[str, Any] = {
        "number": f"C-{10110 + place * 17}",
        "name": buyer.name,
        "street": buyer.street,
        "town": buyer.town,
        "country": buyer.country,
    }
    if place % 3 == 0:
        customer["department"] = "Accounts payable" if place % 2 else "Purchasing"
    if buyer.code == "NL" or buyer.code in EU:
        # All zeros before the last digits: of the right look, and nobody's.
        customer["vat_id"] = f"{buyer.code}000000{100 + place}"
    return customer


def _vat_note(buyer: Buyer) -> str | None:
    if buyer.code == "NL":
        return None
    if buyer.code in EU:
        return "Intra-Community supply, exempt from VAT under Article 138 of Directive 2006/112/EC."
    return "Export outside the European Union, exempt from VAT under Article 146 of Directive 2006/112/EC."


def _articles(dice: random.Random, number: int) -> list[Article]:
    # One order in fourteen is for a whole new shop and fills several pages.
    count = dice.randint(34, len(ARTICLES)) if number % 14 == 0 else dice.randint(1, 14)
    return sorted(dice.sample(ARTICLES, count), key=lambda article: article.number)


def _quantity(dice: random.Random, article: Article) -> int:
    return dice.choice((1, 2, 3, 4) if article.price > 50 else (2, 5, 6, 10, 12, 20, 24, 48, 60))


def _day(dice: random.Random) -> date:
    day = FIRST_DAY + timedelta(days=dice.randrange(85))
    return day - timedelta(days=max(0, day.weekday() - 4))


def _rate_of_a_day(dice: random.Random, rate: Decimal) -> Decimal:
    return (rate * (10000 + dice.randint(-150, 150)) / 10000).quantize(Decimal("0.0001"), ROUND_HALF_UP)


def _price(euros: Decimal, currency: str) -> Decimal:
    return (euros * RATES[currency]).quantize(Decimal("0.01"), ROUND_HALF_UP)


if __name__ == "__main__":
    main()
