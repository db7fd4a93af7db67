"""Whom the invented wholesaler sells to, and what.  No such companies, addresses or VAT numbers exist."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal


@dataclass(frozen=True, slots=True)
class Buyer:
    name: str
    street: str
    town: str
    country: str
    code: str
    currency: str = "EUR"


@dataclass(frozen=True, slots=True)
class Article:
    """``price`` is in EUR for one unit, ``weight`` in kg for one unit."""

    category: str
    number: str
    description: str
    unit: str
    price: Decimal
    weight: Decimal
    vat_percent: int


#: Members of the EU other than the seller's: deliveries to them are free of VAT as intra-Community supplies.
EU = frozenset({"AT", "BE", "CZ", "DE", "DK", "ES", "FI", "FR", "HU", "IE", "IT", "PL", "PT", "RO", "SE", "SI", "SK"})

BUYERS = (
    Buyer("Molenkamp & Dochters Keukens", "Lindelaan 48", "3500 ZZ Utrecht", "The Netherlands", "NL"),
    Buyer("Bistro-inrichting De Vijfhoek", "Havenstraat 7a", "1000 ZZ Amsterdam", "The Netherlands", "NL"),
    Buyer("Papierhandel Oosterwolde-Zuid", "Stationsweg 112", "9700 ZZ Groningen", "The Netherlands", "NL"),
    Buyer("Gereedschapshuis Peelrand", "Industrieweg 3", "5600 ZZ Eindhoven", "The Netherlands", "NL"),
    Buyer("Kantoorvakhuis Waalkade", "Waalkade 20", "6500 ZZ Nijmegen", "The Netherlands", "NL"),
    Buyer("Horeca-atelier Zilvermeeuw", "Zeeweg 301", "2500 ZZ Den Haag", "The Netherlands", "NL"),
    Buyer("Großküchen Müllerweiß GmbH", "Weißdornstraße 14", "80000 München", "Germany", "DE"),
    Buyer("Süßmost & Söhne Gastrobedarf KG", "Kürschnergäßchen 2", "90000 Nürnberg", "Germany", "DE"),
    Buyer("Werkzeug-Schröer Hübnersdorf", "Am Güterbahnhof 9", "50000 Köln", "Germany", "DE"),
    Buyer("Bürowelt Jägerstieg GmbH & Co. KG", "Jägerstieg 77", "20000 Hamburg", "Germany", "DE"),
    Buyer("Caféteria Étoile Bleue SARL", "18 rue de l’Écluse", "69000 Lyon", "France", "FR"),
    Buyer("L’Atelier du Chêne Doré", "5 allée des Forgerons", "33000 Bordeaux", "France", "FR"),
    Buyer("Papeterie Sept-Îles & Fils", "41 quai Saint-Éloi", "44000 Nantes", "France", "FR"),
    Buyer("Suministros Peña Alta S.L.", "Calle del Ñandú 23", "28000 Madrid", "Spain", "ES"),
    Buyer("Cocinas Muñeira del Norte", "Avenida de la Señal 6", "48000 Bilbao", "Spain", "ES"),
    Buyer("Żółta Łódka Sp. z o.o.", "ul. Źródlana 15/4", "90-000 Łódź", "Poland", "PL", "PLN"),
    Buyer("Hurtownia Świt-Gałązka", "ul. Młyńska 8", "61-000 Poznań", "Poland", "PL", "PLN"),
    Buyer("Narzędzia Białowrzos S.A.", "al. Kowalów 101", "50-000 Wrocław", "Poland", "PL", "PLN"),
    Buyer("Køkkenhuset Blåbær ApS", "Østre Smøgevej 12", "8000 Aarhus", "Denmark", "DK", "DKK"),
    Buyer("Søfuglens Værktøj A/S", "Bådehavnsgade 3", "5000 Odense", "Denmark", "DK", "DKK"),
    Buyer("Kök & Verkstad Nordanå AB", "Björkvägen 31", "411 00 Göteborg", "Sweden", "SE", "SEK"),
    Buyer("Pappersboden Ängsmåla", "Skördegränd 2", "223 00 Lund", "Sweden", "SE", "SEK"),
    Buyer("Kuchyně Pod Třešní s.r.o.", "Říční 19", "602 00 Brno", "Czechia", "CZ"),
    Buyer("Nářadí Šípek a dcery", "Žižkova 84", "301 00 Plzeň", "Czechia", "CZ"),
    Buyer("Ferramenta Città Verde S.r.l.", "Via dei Maniscalchi 27", "40100 Bologna", "Italy", "IT"),
    Buyer("Loja Açafrão & Limão Lda.", "Rua das Tílias 55", "4000 Porto", "Portugal", "PT"),
    Buyer("Konyhavár Őszirózsa Kft.", "Fűzfa utca 10", "6700 Szeged", "Hungary", "HU"),
    Buyer("Wiener Küchenstüberl Öllinger", "Mühlgasse 4", "1000 Wien", "Austria", "AT"),
    Buyer("Ó Dubhghlas Kitchen Supply Ltd", "Unit 6, Quarry Lane", "Cork T12 ZZ00", "Ireland", "IE"),
    Buyer("Keittiötukku Järvenpäällys Oy", "Mäntytie 22", "33000 Tampere", "Finland", "FI"),
    Buyer("Fairweather & Pike Catering Ltd", "14 Tollgate Yard", "Leeds LS99 9ZZ", "United Kingdom", "GB", "GBP"),
    Buyer("The Copper Ladle Supply Co.", "Mill House, Weir Road", "Bristol BS99 9ZZ", "United Kingdom", "GB", "GBP"),
    Buyer("Küchenbau Rübli AG", "Obere Mühlestrasse 16", "8000 Zürich", "Switzerland", "CH", "CHF"),
    Buyer("Papeterie du Lac Léman SA", "Chemin des Pêcheurs 9", "1200 Genève", "Switzerland", "CH", "CHF"),
    Buyer("Fjellvær Kjøkken og Verktøy AS", "Sjøgata 40", "5000 Bergen", "Norway", "NO", "NOK"),
    Buyer("Blåskjell Kontor Tromsø", "Nordlysvegen 5", "9000 Tromsø", "Norway", "NO", "NOK"),
)


def _articles(category: str, prefix: str, vat: int, rows: str) -> tuple[Article, ...]:
    articles = []
    for number, row in enumerate(rows.strip().splitlines(), start=1):
        description, unit, price, weight = (part.strip() for part in row.split("|"))
        articles.append(
            Article(category, f"{prefix}-{1000 + number * 35}", description, unit, Decimal(price), Decimal(weight), vat)
        )
    return tuple(articles)


ARTICLES = (
    *_articles(
        "Kitchen",
        "KI",
        21,
        """
        Chef’s knife 20 cm, forged, riveted handle | pc | 34.90 | 0.32
        Bread knife 25 cm, serrated | pc | 27.45 | 0.28
        Paring knife 9 cm | pc | 9.80 | 0.09
        Chopping board beech 45 × 30 cm | pc | 18.65 | 1.85
        Chopping board, colour coded, set of 6 | set | 62.30 | 4.20
        Sauté pan stainless 28 cm with lid | pc | 71.20 | 2.65
        Stock pot 16 l, induction | pc | 89.95 | 3.90
        Crêpe pan 26 cm, carbon steel | pc | 29.40 | 1.55
        Gastronorm container 1/1, 100 mm | pc | 22.15 | 1.40
        Gastronorm container 1/2, 65 mm | pc | 12.35 | 0.70
        Gastronorm lid 1/1 with handle | pc | 9.95 | 0.95
        Whisk 30 cm, 12 wires | pc | 8.20 | 0.15
        Ladle 0.25 l, hooked | pc | 7.65 | 0.21
        Digital scale 15 kg / 1 g | pc | 54.00 | 1.75
        Probe thermometer −40 to +250 °C | pc | 24.90 | 0.08
        Espresso cup 8 cl with saucer, white, box of 6 | box | 28.50 | 1.90
        Soup plate 22 cm, white, box of 12 | box | 57.60 | 6.80
        Water glass 33 cl, stackable, box of 24 | box | 39.85 | 7.10
        """,
    ),
    *_articles(
        "Workshop",
        "WS",
        21,
        """
        Combination spanner set 8–19 mm, 12 pieces | set | 48.70 | 1.95
        Screwdriver set, insulated, 7 pieces | set | 36.25 | 0.85
        Claw hammer 450 g, ash handle | pc | 17.90 | 0.68
        Cordless drill 18 V, two batteries | pc | 149.00 | 3.40
        Twist drill set HSS 1–10 mm, 19 pieces | set | 31.60 | 0.55
        Cutting disc 125 mm, steel, box of 25 | box | 26.75 | 1.10
        Wood screw 4 × 40 mm, countersunk, box of 500 | box | 14.85 | 1.30
        Wood screw 5 × 60 mm, countersunk, box of 200 | box | 13.20 | 1.25
        Wall plug 8 mm, nylon, box of 100 | box | 5.95 | 0.18
        Cable reel 25 m, 3 × 1.5 mm² | pc | 44.40 | 5.60
        Work gloves, size 9, pack of 12 | pack | 19.20 | 0.74
        Safety glasses, clear, EN 166 | pc | 4.35 | 0.04
        Hearing protection 32 dB | pc | 15.75 | 0.24
        Folding rule 2 m, beech | pc | 6.10 | 0.11
        Spirit level 60 cm, aluminium | pc | 21.95 | 0.49
        """,
    ),
    *_articles(
        "Paper",
        "PA",
        21,
        """
        Copy paper A4 80 g/m², 5 × 500 sheets | box | 23.95 | 12.50
        Copy paper A3 80 g/m², 3 × 500 sheets | box | 29.80 | 15.00
        Till roll 80 × 80 mm, thermal, box of 50 | box | 41.15 | 9.60
        Kraft carrier bag 26 × 17 × 25 cm, box of 250 | box | 36.90 | 10.20
        Napkins 33 × 33 cm, 2-ply, box of 2,000 | box | 33.25 | 8.40
        Baking paper 40 × 60 cm, 500 sheets | box | 25.70 | 5.30
        Envelopes C5, window, box of 500 | box | 18.45 | 2.90
        Lever arch file A4, 80 mm, box of 10 | box | 22.60 | 4.10
        Moving box 60 × 40 × 40 cm, pack of 20 | pack | 38.00 | 15.60
        Packing tape 50 mm × 66 m, pack of 36 | pack | 32.40 | 6.10
        """,
    ),
    *_articles(
        "Books",
        "BK",
        9,
        """
        The Working Kitchen, handbook, 312 pages | pc | 26.61 | 0.88
        Bread in Numbers, 240 pages | pc | 31.19 | 0.94
        Timber Joints Illustrated, 196 pages | pc | 22.02 | 0.71
        Allergen register, A4, 100 leaves | pc | 11.47 | 0.42
        """,
    ),
)

#: How much of the currency one EUR buys; invented, but of the right size.
RATES = {
    "CHF": Decimal("0.9342"),
    "CZK": Decimal("24.3150"),
    "DKK": Decimal("7.4604"),
    "EUR": Decimal("1"),
    "GBP": Decimal("0.8711"),
    "NOK": Decimal("11.7265"),
    "PLN": Decimal("4.2538"),
    "SEK": Decimal("11.0480"),
    "USD": Decimal("1.1629"),
}
