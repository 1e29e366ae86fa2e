# SPDX-License-Identifier: GPL-2.0-or-later
"""The report as one HTML file that needs nothing else: no network, no script, light and dark."""

from collections.abc import Sequence
from importlib.resources import files

from fastsocket.report.markup import Element, el, serialize
from fastsocket.report.metrics import MIN_ROUNDS
from fastsocket.report.sections import Section
from fastsocket.report.tables import Cell, Table

__all__ = ["MARKER", "render"]

MARKER = "<!doctype html><!-- fastsocket report -->"
"""How every page begins: what begins otherwise is not ours, and is not overwritten."""

_NOTE = (
    "Figures are medians of the rounds; brackets hold the 95 % bootstrap interval. Modes take "
    "turns in random order within each round, and ratios are taken round by round. “Better” and "
    f"“worse” are said only of at least {MIN_ROUNDS} rounds, and where the whole interval lies on "
    "one side of 1."
)


def render(title: str, sections: Sequence[Section]) -> str:
    """Return the page.

    Args:
        title: Its heading.
        sections: In the order of the page, at least one.
    """
    cards = [card for section in sections for card in section.cards]
    style = (files("fastsocket.report") / "page.css").read_text(encoding="utf-8")
    head = el(
        "head",
        el("meta", charset="utf-8"),
        el("meta", name="viewport", content="width=device-width, initial-scale=1"),
        el(
            "meta",
            http_equiv="Content-Security-Policy",
            content="default-src 'none'; style-src 'unsafe-inline'",
        ),
        el("meta", name="generator", content="fastsocket report"),
        el("title", title),
        el("style", style),
    )
    body = el(
        "body",
        el("header", el("h1", title), _contents(sections)),
        el(
            "main",
            el("ul", *(_card(*card) for card in cards), class_="cards") if cards else None,
            *(_section(section) for section in sections),
        ),
        el("footer", el("h2", "How to read the figures"), el("p", _NOTE)),
    )
    return f"{MARKER}\n{serialize(el('html', head, body, lang='en'))}\n"


def _contents(sections: Sequence[Section]) -> Element:
    """Link to every section."""
    links = (el("li", el("a", section.title, href=f"#{section.key}")) for section in sections)
    return el("nav", el("ul", *links), aria_label="Contents")


def _card(label: str, figure: str, note: str) -> Element:
    return el("li", label, el("span", figure, class_="figure"), el("span", note, class_="soft"))


def _section(section: Section) -> Element:
    facts = [part for name, value in section.facts for part in (el("dt", name), el("dd", value))]
    return el(
        "section",
        el("h2", section.title, id=f"{section.key}-title"),
        *(el("p", text) for text in section.text),
        el("div", *(_figure(*chart) for chart in section.charts), class_="charts")
        if section.charts
        else None,
        *(_table(table) for table in section.tables),
        el("dl", *facts) if facts else None,
        id=section.key,
        aria_labelledby=f"{section.key}-title",
    )


def _figure(chart: Element, caption: str, key: Sequence[tuple[str, str]]) -> Element:
    """Show a chart under its title, with a key where colours are not named in the chart."""
    title = chart.findtext("title", "")
    entries = (el("li", el("span", class_=style, aria_hidden="true"), name) for style, name in key)
    return el(
        "figure",
        el("h3", title),
        el("ul", *entries, class_="key") if key else None,
        chart,
        el("figcaption", caption) if caption else None,
    )


def _table(table: Table) -> Element:
    """Write a table; roles are given because narrow screens show its rows as blocks."""
    head = el(
        "tr",
        *(el("th", text, scope="col", role="columnheader") for text in table.header),
        role="row",
    )
    rows = (
        el(
            "tr",
            el("th", row[0].text, scope="row", role="rowheader"),
            *(_cell(label, cell) for label, cell in zip(table.header[1:], row[1:], strict=True)),
            role="row",
        )
        for row in table.rows
    )
    return el(
        "table",
        el("caption", table.caption),
        el("thead", head, role="rowgroup"),
        el("tbody", *rows, role="rowgroup"),
        role="table",
    )


def _cell(label: str, cell: Cell) -> Element:
    interval = el("span", cell.interval, class_="interval") if cell.interval else None
    tone = el("span", cell.tone, class_=f"tone {cell.tone.split()[0]}") if cell.tone else None
    return el("td", el("span", cell.text, interval, tone), data_label=label, role="cell")
