"""The result on a run's page: the numbers that count, and the arms side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from rayqd.console.progress import duration
from rayqd.report import page
from rayqd.report.page import Column, Figure

Row = Mapping[str, Any]


def figures(result: Row, environment: Mapping[str, Any]) -> Markup:
    """What counts, large: the last arm beside the teacher and the best of the others."""
    teacher, *others, student = result["rows"]
    shown = [
        Figure(
            title="KL to teacher",
            value=f"{student['kl_to_teacher']:.4f}",
            unit="nats",
            beside=_against(student, others),
        ),
        Figure(
            title="Perplexity",
            value=f"{student['perplexity']:.3f}",
            beside=f"the teacher's is {teacher['perplexity']:.3f}",
        ),
        Figure(
            title="Size",
            value=size_text(student["size_bytes"]).partition(" ")[0],
            unit=size_text(student["size_bytes"]).partition(" ")[2],
            beside=f"{teacher['size_bytes'] / student['size_bytes']:.1f} times smaller than the teacher",
        ),
        Figure(title="Time", value=duration(result["seconds"]["total"]), beside=_where(environment)),
    ]
    return page.figures(shown)


def _against(student: Row, others: Sequence[Row]) -> str | Markup:
    """Beside the best arm without training."""
    best = min(others, key=lambda row: row["kl_to_teacher"], default=None)
    if best is None or best["kl_to_teacher"] == 0:
        return ""
    change = student["kl_to_teacher"] / best["kl_to_teacher"] - 1
    return Markup('<span class="{}">{} %</span> against {}').format(
        "good" if change < 0 else "bad", f"{100 * change:+.0f}".replace("-", "−"), best["arm"]
    )


def arms(rows: Sequence[Row], *, sizes: bool) -> Markup:
    """Every arm of `rows`, the last one in bold; `sizes` are known once there is an export."""
    widest = max(row["kl_to_teacher"] for row in rows)
    titles = [Column(title=""), Column(title="KL to teacher", kind="number"), Column(title="", kind="bar")]
    titles += [Column(title="same top-1", kind="number"), Column(title="perplexity", kind="number")]
    cells = [
        [
            row["arm"],
            f"{row['kl_to_teacher']:.4f}",
            row["kl_to_teacher"] / (widest or 1.0),
            f"{row['top1_agreement']:.1%}",
            f"{row['perplexity']:.3f}",
        ]
        for row in rows
    ]
    if sizes:
        titles += [Column(title=Markup("bits/<wbr>weight"), kind="number"), Column(title="size", kind="number")]
        for line, row in zip(cells, rows, strict=True):
            line += [f"{row['bits_per_weight']:g}", size_text(row["size_bytes"])]
    tokens = rows[0]["num_tokens"]
    note = (
        f"{tokens:,} held-out tokens. KL(teacher‖student) is in nats a token, over the full vocabulary; "
        "same top-1 says how often the likeliest token is the teacher's."
    )
    return page.section("Result", page.table(titles, cells, chosen=len(rows) - 1), note=note)


def size_text(num_bytes: int) -> str:
    return f"{num_bytes / 1e9:.2f} GB" if num_bytes >= 1e9 else f"{num_bytes / 1e6:.1f} MB"


def _where(environment: Mapping[str, Any]) -> str:
    cluster = environment.get("cluster", {})
    return f"on {gpus(cluster)}" if cluster.get("gpus") else f"on {environment['machine']['cores']} CPU cores"


def gpus(cluster: Mapping[str, Any]) -> str:
    """`8 × H100`."""
    return f"{cluster['gpus']:g} × {', '.join(cluster.get('accelerators', [])) or 'GPU'}"
