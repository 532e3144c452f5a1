"""What lies beside the page, for papers and issues: each figure as an SVG of its own, and the table as Markdown."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from importlib.resources import files

from markupsafe import Markup

from rayqd.console.result_table import describe_bits, format_bits, format_size
from rayqd.events import ArmResult
from rayqd.metrics.bootstrap import Interval, estimate, perplexity, ratio
from rayqd.runs.result_file import RunResult

_FIGURE = re.compile(r"<figure.*?</figure>", re.DOTALL)
_TITLE = re.compile(r"<strong>(.*?)</strong>", re.DOTALL)
_UNIT = re.compile(r'<span class="unit">(.*?)</span>', re.DOTALL)
_KEY = re.compile(r'<span class="key k(\d)( dashed)?">(.*?)</span>', re.DOTALL)
_SVG = re.compile(r'<svg class="chart[^"]*" viewBox="0 0 (\d+) (\d+)"(.*?)>(.*)</svg>', re.DOTALL)
_LINE, _MARGIN = 16, 8  # units of the drawing: of a line of the legend, and around it all


def list_figures(page: str) -> Iterator[tuple[str, str]]:
    """Yield a file's name and the text of an SVG for each figure of `page`, which needs nothing beside itself."""
    for figure in _FIGURE.findall(page):
        title, drawing = _TITLE.search(figure), _SVG.search(figure)
        if title and drawing:
            name = re.sub(r"[^a-z0-9]+", "-", str(Markup(title[1]).unescape()).lower()).strip("-")
            unit = _UNIT.search(figure)
            heading = f"{title[1]}, {unit[1]}" if unit and unit[1] else title[1]
            yield f"{name}.svg", _alone(heading, _KEY.findall(figure.partition("<svg")[0]), drawing)


def _alone(heading: str, keys: Sequence[tuple[str, str, str]], drawing: re.Match[str]) -> str:
    width, height = int(drawing[1]), int(drawing[2])
    top = _LINE * (1 + len(keys)) + _MARGIN
    legend = "".join(
        f'<path class="line k{colour}{dashed}" d="M0 {_LINE * (i + 1) + 8}h12"/>'
        f'<text x="18" y="{_LINE * (i + 1) + 12}">{re.sub("<[^>]*>", "", text)}</text>'
        for i, (colour, dashed, text) in enumerate(keys)
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="chart" '
        f'viewBox="{-_MARGIN} {-_MARGIN} {width + 3 * _MARGIN} {height + top + 2 * _MARGIN}" '
        f'width="{2 * width}"{drawing[3]}><style>{_style()}</style>'
        f'<rect class="paper" x="{-_MARGIN}" y="{-_MARGIN}" width="100%" height="100%"/>'
        f'<text class="title" x="0" y="11">{heading}</text>{legend}'
        f'<g transform="translate(0 {top})">{drawing[4]}</g></svg>\n'
    )


def _style() -> str:
    """Return of the page's style what its charts need: the colours, light and dark, and the drawings' own rules."""
    css = files("rayqd.report").joinpath("page.css").read_text()
    colours = css.partition("* {")[0]
    rules = [line for line in css.splitlines() if line.startswith(("svg.chart", ".k0", ".k3", ".k6"))]
    own = "svg.chart rect.paper{fill:var(--paper)}svg.chart text.title{fill:var(--ink);font-weight:600}"
    return "\n".join([colours.strip(), *rules, own]).replace("overflow: visible;", "")


def result_markdown(result: RunResult, ending: str = "") -> str:
    """Return the verdict and the table, with intervals, as Markdown; `ending`: see `rayqd.runs.ending`."""
    head = ["", "KL to teacher", "same top-1", "perplexity", "bits/weight", "size"]
    lines = [f"| {' | '.join(head)} |", f"| --- |{' ---: |' * (len(head) - 1)}"]
    lines += [f"| {' | '.join(_cells(row))} |" for row in result.rows]
    verdict = result.verdict
    tokens = f"{result.teacher.fidelity.num_tokens:,} held-out tokens; KL(teacher‖student) in nats a token."
    bits = describe_bits(result.student)
    note = f"{tokens} Bits a weight are over the whole model: {bits}." if bits else tokens
    parts = [f"# {result.name}", verdict.sentence if verdict else "", "\n".join(lines), ending, note]
    return "\n\n".join(filter(None, parts)) + "\n"


def _cells(row: ArmResult) -> list[str]:
    measured, rows = row.fidelity, row.fidelity.by_row
    kl = top1 = ppl = None
    if rows:
        kl = estimate(ratio, rows.kl, rows.num_tokens).interval
        top1 = estimate(ratio, rows.agrees, rows.num_tokens).interval
        ppl = estimate(perplexity, rows.nll, rows.num_tokens).interval
    return [
        row.arm.name,
        f"{measured.kl_to_teacher:.4f}{_between(kl, '.4f')}",
        f"{measured.top1_agreement:.1%}{_between(top1, '.1%')}",
        f"{measured.perplexity:.3f}{_between(ppl, '.2f')}",
        format_bits(row),
        format_size(row),
    ]


def _between(interval: Interval | None, form: str) -> str:
    if interval is None or interval.low == interval.high:
        return ""
    return f" ({interval.low:{form}}–{interval.high:{form}})"
