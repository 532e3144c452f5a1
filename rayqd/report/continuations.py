"""Where the student goes on by itself, on a run's page: numbers by position, and texts side by side."""

from __future__ import annotations

from markupsafe import Markup

from rayqd.console.continuations import NOTE, count_text, kl_text, share_text, sides, span_text
from rayqd.report import page
from rayqd.report.page import Column
from rayqd.runs.continuations import Continuations, SideBySide

_TITLES = ("along", "tokens", "KL to teacher", "same top-1", "measured on")


def continuations_section(found: Continuations) -> Markup:
    """Draw the table, how long teacher and student agree, and the texts, folded away."""
    columns = [Column(title=title, kind="text" if i in (0, 4) else "number") for i, title in enumerate(_TITLES)]
    rows = [
        [title if i == 0 else "", span_text(each), kl_text(each), share_text(each), count_text(each)]
        for title, positions in sides(found)
        for i, each in enumerate(positions)
    ]
    texts = [_side_by_side(i, sample, found.max_new_tokens) for i, sample in enumerate(found.samples, start=1)]
    return page.section(
        "Where the student goes on by itself",
        page.table(columns, rows),
        Markup('<p class="note">{}</p>').format(found.agreement),
        page.details("Teacher, rounded model and student side by side", *texts),
        note=f"{NOTE}.",
    )


def _side_by_side(number: int, sample: SideBySide, most: int) -> Markup:
    title = Markup("<h3>Prompt {} <small>the same for {} of at most {} tokens</small></h3>").format(
        number, sample.agreed, most
    )
    shown = [("prompt", sample.prompt), *sample.texts.items()]
    block = Markup('<p class="note">{}</p><pre class="seen">{}</pre>')
    return title + page.joined(block.format(name, text) for name, text in shown)
