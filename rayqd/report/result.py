"""The result on a run's page: the numbers that count, and the arms side by side."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

from markupsafe import Markup

from rayqd.console.progress import duration
from rayqd.console.result_table import describe_bits, format_bits
from rayqd.events import ArmResult
from rayqd.metrics.bootstrap import LEAST_ROWS, estimate, perplexity, ratio
from rayqd.report import page
from rayqd.report.page import Column, Figure
from rayqd.runs.environment import ClusterSize, Environment
from rayqd.runs.result_file import RunResult
from rayqd.runs.verdict import compare_kl


def figures(result: RunResult, environment: Environment) -> Markup:
    """Draw what counts, large: the student beside the teacher and the best arm without training."""
    teacher, student = result.teacher, result.student
    cards = [
        Figure(
            title="KL to teacher",
            value=f"{student.fidelity.kl_to_teacher:.4f}",
            unit="nats",
            beside=_against(student, result.rows[1:-1]),
        ),
        Figure(
            title="Perplexity",
            value=f"{student.fidelity.perplexity:.3f}",
            beside=f"the teacher's is {teacher.fidelity.perplexity:.3f}",
        ),
    ]
    if student.size_bytes and teacher.size_bytes:
        value, _, unit = size_text(student.size_bytes).partition(" ")
        beside = f"{teacher.size_bytes / student.size_bytes:.1f} times smaller than the teacher"
        cards.append(Figure(title="Size", value=value, unit=unit, beside=beside))
    cards.append(Figure(title="Time", value=duration(result.seconds["total"]), beside=_hardware(environment)))
    return page.figures(cards)


def _against(student: ArmResult, others: Sequence[ArmResult]) -> str | Markup:
    """Compare with the best arm without training; in colour only where the rows decide which of both is closer."""
    best = min(others, key=lambda row: row.fidelity.kl_to_teacher, default=None)
    found = compare_kl(best.fidelity, student.fidelity) if best else None
    if best is None or found is None:
        return ""
    interval = found.interval
    decided = interval is not None and interval.excludes(0.0)
    kind = "" if not decided else "good" if found.value < 0 else "bad"
    ends = f" ({_signed(interval.low)} to {_signed(interval.high)} %)" if interval else ""
    undecided = "" if decided or interval is None else ": not decided"
    few = "" if interval else f", {len(student.fidelity.by_row.num_tokens)} rows" if student.fidelity.by_row else ""
    return Markup('<span class="{}">{} %</span>{} against {}{}{}').format(
        kind, _signed(found.value), ends, best.arm.name, undecided, few
    )


def _signed(share: float) -> str:
    return f"{100 * share:+.0f}".replace("-", "−")


def arms(rows: Sequence[ArmResult], *, sizes: bool) -> Markup:
    """Draw a table of `rows`, the last one in bold; `sizes` are known once there is an export."""
    widest = max(row.fidelity.kl_to_teacher for row in rows)
    titles = [Column(title=""), Column(title="KL to teacher", kind="number"), Column(title="", kind="bar")]
    titles += [Column(title="same top-1", kind="number"), Column(title="perplexity", kind="number")]
    cells = [
        [
            row.arm.name,
            _with_interval(f"{row.fidelity.kl_to_teacher:.4f}", row, ratio, "kl", ".3f"),
            row.fidelity.kl_to_teacher / (widest or 1.0),
            _with_interval(f"{row.fidelity.top1_agreement:.1%}", row, ratio, "agrees", ".1%"),
            _with_interval(f"{row.fidelity.perplexity:.3f}", row, perplexity, "nll", ".2f"),
        ]
        for row in rows
    ]
    if any(row.fidelity.text_perplexity is not None for row in rows):
        titles.append(Column(title="perplexity of eval.text", kind="number"))
        for line, row in zip(cells, rows, strict=True):
            found = row.fidelity.text_perplexity
            line.append("–" if found is None else f"{found:.3f}")
    if sizes:
        titles += [Column(title=Markup("bits/<wbr>weight"), kind="number"), Column(title="size", kind="number")]
        for line, row in zip(cells, rows, strict=True):
            line += [format_bits(row), size_text(row.size_bytes or 0)]
    tokens = rows[0].fidelity.num_tokens
    rows_text = _rows_text(rows[0])
    note = (
        f"{tokens:,} held-out tokens{rows_text}. KL(teacher‖student) is in nats a token, over the full vocabulary; "
        "same top-1 says how often the likeliest token is the teacher's."
    )
    if scored := rows[-1].fidelity.num_text_tokens:
        note += f" The perplexity of eval.text is over {scored:,} tokens."
    if bits := describe_bits(rows[-1]):
        note += f" Bits a weight are over the whole model: {bits}."
    return page.section("Result", page.table(titles, cells, chosen=len(rows) - 1), note=note)


def _with_interval(
    text: str, row: ArmResult, statistic: Callable[..., Any], column: Literal["kl", "agrees", "nll"], form: str
) -> Markup | str:
    """Return the number with its 95 % interval under it; alone where there is none, or it is exact."""
    rows = row.fidelity.by_row
    interval = estimate(statistic, getattr(rows, column), rows.num_tokens).interval if rows else None
    if interval is None or interval.low == interval.high:
        return text
    return Markup("{}<small>{}–{}</small>").format(text, f"{interval.low:{form}}", f"{interval.high:{form}}")


def _rows_text(row: ArmResult) -> str:
    """Format ` in 40 rows; under each number its 95 % interval`, as far as that is known."""
    rows = row.fidelity.by_row
    if rows is None:
        return ""
    num_rows = len(rows.num_tokens)
    if num_rows < LEAST_ROWS:
        return f" in {num_rows} row{'' if num_rows == 1 else 's'}, too few for intervals"
    return f" in {num_rows:,} rows; under a number its 95 % interval, by bootstrap over the rows"


def size_text(num_bytes: int) -> str:
    """Return `113.2 MB` or `8.05 GB`."""
    return f"{num_bytes / 1e9:.2f} GB" if num_bytes >= 1e9 else f"{num_bytes / 1e6:.1f} MB"


def _hardware(environment: Environment) -> str:
    cluster = environment.cluster
    return f"on {gpus(cluster)}" if cluster and cluster.gpus else f"on {environment.machine.cores} CPU cores"


def gpus(cluster: ClusterSize) -> str:
    """Return `8 × H100`."""
    return f"{cluster.gpus:g} × {', '.join(cluster.accelerators) or 'GPU'}"
