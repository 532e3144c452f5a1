"""A comparison in the terminal: the verdict, the table, and why arms failed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from rich.console import Console

from rayqd.comparison.cells import cells_of
from rayqd.comparison.findings import Findings
from rayqd.comparison.verdict import budget_text, evidence, own_evidence, own_sentence, sentence
from rayqd.console.result_table import short_path
from rayqd.console.say import say, wrap
from rayqd.console.tables import Column, print_table

_LEGEND = "KL in nats a token; back: share of rounding's damage that is gone; time, accelerator-seconds: of one seed"
_LOG_LINES = 4  # of a failed run's log; the page has more


def print_findings(console: Console, findings: Findings, directory: Path, price: float | None) -> None:
    """Print all of it."""
    console.print()
    for text in filter(None, (sentence(findings), own_sentence(findings), evidence(findings), own_evidence(findings))):
        for line in wrap(text, console.width):
            say(console, line)
    console.print()
    has_others = any(each.arm.is_made_elsewhere for each in findings.arms)  # which may have more bits than rayqd's own
    lines = [cells_of(each, findings, price) for each in findings.arms]
    columns = [
        Column(heading="arm", is_words=True),
        Column(heading="KL to\nteacher"),
        Column(heading="95 %", rank=4),
        Column(heading="back", rank=1),
        Column(heading=f"against\n{findings.reference.arm.name}", rank=2),
        Column(heading="", is_words=True),
        *(_own_columns(findings) if findings.own_texts else []),
        *([Column(heading="bits", rank=9)] if has_others else []),
        Column(heading="seeds", rank=7),
        Column(heading="steps", rank=8),
        Column(heading="tokens", rank=6),
        Column(heading="time", rank=3),
        Column(heading="acc.-s", rank=5),
        *([Column(heading="cost", rank=2)] if price is not None else []),
    ]
    rows = [
        [
            line.arm, line.kl, line.kl_interval, line.recovered, line.difference, line.verdict,
            *([line.own_kl, line.own_difference, line.own_verdict] if findings.own_texts else []),
            *([line.bits] if has_others else []), line.seeds, line.steps, line.tokens, line.time,
            line.accelerator_seconds, *([line.money] if price is not None else []),
        ]
        for line in lines
    ]  # fmt: skip
    print_table(console, columns, rows, title=f"{findings.name}: {budget_text(findings)}")
    for line in _below(findings, directory, console.width):
        say(console, line)


def _own_columns(findings: Findings) -> list[Column]:
    return [
        Column(heading="KL on\nown text", rank=1),
        Column(heading=f"against\n{findings.reference.arm.name}", rank=3),
        Column(heading="", is_words=True, rank=2),
    ]


def _below(findings: Findings, directory: Path, width: int) -> Iterator[str]:
    yield from wrap(_LEGEND, width)
    for arm in findings.failed:
        for run in arm.outcome.failed:
            yield f"{run.job.name} failed: {run.error}"
            yield from (f"  {line}" for line in run.log.splitlines()[-_LOG_LINES:])
    for name, why in (findings.own_texts.errors if findings.own_texts else {}).items():
        yield f"{name}: its own text was not measured: {why}"
    for label, file in (("report", "compare.html"), ("table", "compare.md"), ("result", "compare.json")):
        yield f"{label:<9} {short_path(directory / file)}"
