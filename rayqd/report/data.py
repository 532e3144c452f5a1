"""What a run reads, on its page: counts, what was left out and why, lengths, rows as the model sees them."""

from __future__ import annotations

import datetime
from collections.abc import Iterator, Sequence
from pathlib import Path

from markupsafe import Markup

from rayqd.config import Config
from rayqd.config.sections.models import OTHERS
from rayqd.report import page
from rayqd.report.page import Column, Figure
from rayqd.runs.data_file import Lengths, Piece, RunData, SeenRow, SourceRows, TeacherRows, elide

_MOST_CHARACTERS = 2000  # of a piece: a page is to be looked at


def data_page(config: Config, data: RunData, made: datetime.datetime) -> str:
    """Return the page of `rayqd data`: the same with its rows in full."""
    learner = config.learner
    when = f"{made.day} {made.strftime('%B %Y, %H:%M')}"
    lead = Markup("What a run of <strong>{}</strong> would read, in the tokens of <strong>{}</strong>.").format(
        config.name, Path(config.model.name).name
    )
    shown = [
        Figure(title="Rows used", value=f"{data.training.num_used:,}", beside=f"of {data.training.num_rows:,}"),
        Figure(title="Tokens of a row", value=f"{data.lengths.mean:,.0f}", beside=f"at most {data.lengths.longest:,}"),
        Figure(title="Trained on", value=f"{data.lengths.trained_share:.0%}", beside="of the data's own tokens"),
        _epochs(data, learner.steps),
    ]
    body = [page.header(f"rayqd data · {when}", config.name, lead), page.figures(shown)]
    return page.page(f"data of {config.name} · rayqd", [*body, data_section(data, most_characters=None)])


def _epochs(data: RunData, num_steps: int) -> Figure:
    if data.sources:
        epochs = [each.num_epochs for each in data.sources]
        return Figure(
            title="Epochs",
            value=f"{min(epochs):.2f} to {max(epochs):.2f}",
            beside=f"of the sources, in {num_steps:,} steps",
        )
    epochs = num_steps / data.steps_per_epoch if data.steps_per_epoch else 0.0
    beside = f"{num_steps:,} steps are {epochs:.2f} of it"
    return Figure(title="Epoch", value=f"{data.steps_per_epoch:,.0f}", unit="steps", beside=beside)


def data_section(data: RunData, *, most_characters: int | None = _MOST_CHARACTERS) -> Markup:
    """Draw all of it; of long pieces of rows only both ends, unless `most_characters` is None."""
    return page.section(
        "Data",
        _counts(data),
        _teachers(data.teachers),
        page.columns(_left_out(data), _lengths(data.lengths)),
        *(_row(row, data.ends, data.use, most_characters) for row in data.first),
        note=_note(data),
    )


def _note(data: RunData) -> str:
    lengths = data.lengths
    return (
        f"A row has {lengths.mean:,.0f} tokens in the mean, half have at most {lengths.median:,.0f}, 95 % at most "
        f"{lengths.high:,}; {lengths.trained_share:.0%} of the data's own tokens are {data.use}. "
        f"The first rows stand below as the model sees them: what is marked is {data.use}."
    )


def _counts(data: RunData) -> Markup:
    titles = [Column(title="")]
    numbers = ("rows", "used", "left out", "not needed", "duplicates", *(("share", "epochs") if data.sources else ()))
    titles += [Column(title=title, kind="number") for title in numbers]
    name = Markup("{}: {}")
    rows = [[name.format(title, page.inline_code(rows.name)), *_numbers(rows)] for title, rows in _sources(data)]
    if data.sources:
        shares = [("", ""), *((f"{each.share:.1%}", f"{each.num_epochs:.2f}") for each in data.sources), ("", "")]
        rows = [[*cells, *share] for cells, share in zip(rows, shares, strict=True)]
    return page.table(titles, rows)


def _numbers(rows: SourceRows) -> Iterator[str]:
    for number in (rows.num_rows, rows.num_used, rows.num_left_out, rows.num_not_needed, rows.num_duplicates):
        yield f"{number:,}"


def _sources(data: RunData) -> Sequence[tuple[str, SourceRows]]:
    each = [(source.label, source) for source in data.sources]
    return (("training", data.training), *each, ("held out", data.heldout))


def _teachers(teachers: Sequence[TeacherRows]) -> Markup:
    """Draw who teaches which rows, where there are several."""
    if not teachers:
        return Markup()
    titles = [Column(title="teacher"), Column(title="rows of")]
    titles += [Column(title=title, kind="number") for title in ("trained on", "held out")]
    rows = [
        [
            page.inline_code(Path(each.name).name),
            ", ".join("all others" if value == OTHERS else value for value in each.values),
            f"{each.num_training:,}",
            f"{each.num_heldout:,}",
        ]
        for each in teachers
    ]
    return page.table(titles, rows)


def _left_out(data: RunData) -> Markup:
    """List the reasons with their first rows; a sentence where nothing was left out."""
    entries = [
        Markup("<li>{} {}, {}<ul>{}</ul></li>").format(
            f"{reason.num_rows:,}",
            reason.reason,
            title,
            page.joined(Markup("<li>{}</li>").format(each) for each in reason.first),
        )
        for title, rows in _sources(data)[1 if data.sources else 0 :]  # each of several tells its own
        for reason in rows.left_out
    ]
    body = Markup("<ul>{}</ul>").format(page.joined(entries)) if entries else Markup("<p>None.</p>")
    return Markup('<div class="reasons"><h3>Rows left out</h3>{}</div>').format(body)


def _lengths(lengths: Lengths) -> Markup:
    bars = [(each.name, [each.num_rows], f"{each.num_rows:,}") for each in lengths.bins]
    most = max(each.num_rows for each in lengths.bins)
    drawn = page.bars(bars, most, [0] * len(bars))
    return Markup('<div class="lengths"><h3>Tokens of a row</h3>{}</div>').format(drawn)


def _row(row: SeenRow, ends: Sequence[str], use: str, most_characters: int | None) -> Markup:
    pieces = row.pieces if most_characters is None else elide(row.pieces, most_characters)
    name = f"{row.row:,} of {row.source}" if row.source else f"{row.row:,}"
    title = Markup("<h3>Row {} <small>{}</small></h3>").format(name, row.describe(use))
    text = Markup('<pre class="seen">{}</pre>').format(page.joined(_piece(piece) for piece in pieces))
    return title + text + Markup('<p class="note">{}</p>').format(_end(row, ends))


def _piece(piece: Piece) -> Markup:
    text = Markup.escape(piece.text)
    if piece.is_special:
        text = Markup('<span class="special">{}</span>').format(text)
    return Markup("<mark>{}</mark>").format(text) if piece.is_trained else text


def _end(row: SeenRow, ends: Sequence[str]) -> Markup:
    stops = Markup(" or ").join(page.inline_code(each) for each in ends)
    if row.writer:
        return Markup("{} stops at {}.").format(row.writer.capitalize(), stops)
    if row.end:
        return Markup("{} ends it.").format(page.inline_code(row.end))
    return Markup("Nothing ends it: it was cut, or is plain text ({} would).").format(stops)
