"""The pieces of a page: one self-contained HTML file that needs no network, in light and dark, on a desk and a phone.

Everything here returns Markup, and what is put into it is escaped unless it is Markup itself.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.resources import files

from markupsafe import Markup

EMPTY = Markup("")
COLOURS = 8  # of page.css, k0 to k7


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """Of a table; `bar` columns hold shares from 0 to 1 and are drawn."""

    title: str
    kind: str = "text"  # text, number or bar


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """A number that stands large at the top."""

    title: str
    value: str
    unit: str = ""
    beside: str | Markup = ""


def page(title: str, body: Iterable[Markup], footer: str = "", *, styles: str = "", scripts: str = "") -> str:
    """Return the whole file; `styles` and `scripts` are what it needs beside those of every page."""
    return str(
        Markup(
            '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
            '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
            "<title>{}</title>\n<style>\n{}{}</style>\n</head>\n<body>\n<main>\n{}\n<footer>{}</footer>\n</main>\n"
            "<script>\n{}{}</script>\n</body>\n</html>\n"
        ).format(title, _own("page.css"), Markup(styles), joined(body, "\n"), footer, _own("page.js"), Markup(scripts))
    )


def header(
    kicker: str, title: str, lead: str | Markup, notice: str | Markup = "", *, about: str | Markup = ""
) -> Markup:
    """Return the head of a page; `about` is a smaller line under `lead`, `notice` stands out, where there are any."""
    below = Markup('<p class="about">{}</p>\n').format(about) if about else EMPTY
    warned = Markup('<p class="notice">{}</p>').format(notice) if notice else EMPTY
    return Markup('<header>\n<p class="kicker">{}</p>\n<h1>{}</h1>\n<p class="lead">{}</p>\n{}{}</header>').format(
        kicker, title, lead, below, warned
    )


def figures(shown: Sequence[Figure]) -> Markup:
    """Return numbers side by side, large."""
    one = Markup(
        '<div><dt>{}</dt><dd class="value">{}{}</dd><dd class="beside">{}</dd></div>',
    )
    units = [Markup(" <small>{}</small>").format(f.unit) if f.unit else EMPTY for f in shown]
    cells = [one.format(f.title, f.value, unit, f.beside) for f, unit in zip(shown, units, strict=True)]
    return Markup('<dl class="figures">{}</dl>').format(joined(cells))


def section(title: str, *body: Markup, note: str | Markup = "") -> Markup:
    """Return a heading, a line under it, and what belongs there."""
    about = Markup('<p class="note">{}</p>\n').format(note) if note else EMPTY
    return Markup("<section>\n<h2>{}</h2>\n{}{}\n</section>").format(title, about, joined(body, "\n"))


def table(
    columns: Sequence[Column], rows: Sequence[Sequence[object]], *, chosen: int | None = None, tight: bool = False
) -> Markup:
    """Return a table of `rows`, a cell a column; row number `chosen` stands out. Without titles it has no head."""
    head = EMPTY
    if any(column.title for column in columns):
        cells = joined(Markup('<th class="{}">{}</th>').format(c.kind, c.title) for c in columns)
        head = Markup("<thead><tr>{}</tr></thead>").format(cells)
    lines = (
        Markup("<tr{}>{}</tr>").format(
            Markup(' class="chosen"') if i == chosen else EMPTY,
            joined(_cell(column, value) for column, value in zip(columns, row, strict=True)),
        )
        for i, row in enumerate(rows)
    )
    return Markup('<div class="wide{}"><table>{}<tbody>\n{}\n</tbody></table></div>').format(
        " tight" if tight else "", head, joined(lines, "\n")
    )


def bars(rows: Sequence[tuple[str, Sequence[float], str | Markup]], total: float, colours: Sequence[int]) -> Markup:
    """Draw a horizontal bar a row: its name, its parts on a scale that ends at `total`, and what stands behind it."""
    cells: list[Markup] = []
    for (name, parts, text), colour in zip(rows, colours, strict=True):
        drawn = joined(
            Markup('<span class="k{}{}" style="width:{}%"></span>').format(
                colour, " second" if i else "", f"{100 * part / total if total else 0:.2f}"
            )
            for i, part in enumerate(parts)
        )
        cells.append(
            Markup('<span>{}</span><span class="stack">{}</span><span class="value">{}</span>').format(
                name, drawn, text
            )
        )
    return Markup('<div class="bars">{}</div>').format(joined(cells, "\n"))


def parts_bar(parts: Sequence[tuple[str, float, str]]) -> Markup:
    """Draw one bar of all `parts`, each a name, its size, and the size as text, and a line for each with its share."""
    total = sum(size for _, size, _ in parts) or 1.0
    drawn = joined(
        Markup('<span class="k{}" style="width:{}%"></span>').format(i % COLOURS, f"{100 * size / total:.2f}")
        for i, (_, size, _) in enumerate(parts)
    )
    names = joined(
        Markup('<li class="key k{}">{} <strong>{}</strong> · {} %</li>').format(
            i % COLOURS, name, text, f"{100 * size / total:.0f}"
        )
        for i, (name, size, text) in enumerate(parts)
    )
    return Markup('<div class="parts"><span class="stack">{}</span><ul>{}</ul></div>').format(drawn, names)


def columns(*parts: Markup) -> Markup:
    """Put `parts` side by side where there is room."""
    return Markup('<div class="columns">{}</div>').format(joined(parts))


def code(text: str) -> Markup:
    """Return a block of code, which keeps its line breaks."""
    return Markup("<pre><code>{}</code></pre>").format(text)


def inline_code(text: str) -> Markup:
    """Return code in a line, which may break behind dots, slashes and underscores where room is short."""
    breakable = re.sub(r"([./_]+)(?=.)", r"\1<wbr>", str(Markup.escape(text)))
    return Markup("<code>{}</code>").format(Markup(breakable))


def details(summary: str, *body: Markup) -> Markup:
    """Fold `body` away until somebody asks for it."""
    return Markup("<details><summary>{}</summary>{}</details>").format(summary, joined(body))


def joined(parts: Iterable[Markup], between: str = "") -> Markup:
    """Concatenate `parts`; `between` them goes markup, not text."""
    return Markup(between).join(parts)


def _cell(column: Column, value: object) -> Markup:
    if column.kind != "bar":
        return Markup('<td class="{}">{}</td>').format(column.kind, value)
    assert isinstance(value, int | float)
    bar = Markup('<span class="track"><span style="width:{}%"></span></span>').format(f"{100 * value:.2f}")
    return Markup('<td class="bar" aria-hidden="true">{}</td>').format(bar if value > 0 else EMPTY)


def _own(name: str) -> Markup:
    return Markup(files("rayqd.report").joinpath(name).read_text())
