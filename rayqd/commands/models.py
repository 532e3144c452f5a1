"""`rayqd models`: tries architectures one after the other, and writes the table of them."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from rich.console import Console

from rayqd.commands.runs import plain_console
from rayqd.console.say import say
from rayqd.files import write_text
from rayqd.rollout.registry import engine_architectures
from rayqd.survey.architectures import causal_architectures
from rayqd.survey.page import make_page, summarize
from rayqd.survey.processes import try_all
from rayqd.survey.row import Row, Verdict

BROKEN = (Verdict.WRONG, Verdict.FAILED)


def models(names: Sequence[str], rows_dir: Path, page: Path | None = None, console: Console | None = None) -> int:
    """Try the architectures `names`, or all that have no row in `rows_dir` yet, and write `page`.

    Returns 1 where one is wrong or failed, else 0. Raises ConfigError at an unknown name.
    """
    console = console or plain_console()
    supported = engine_architectures()
    rows: list[Row] = []
    for row in try_all(names or sorted(causal_architectures()), rows_dir, again=bool(names)):
        row.engine = None if supported is None or not row.class_name else row.class_name in supported
        rows.append(row)
        say(console, _line(row))
    say(console, summarize(rows))
    if page is not None:
        versions = ", ".join(f"{package} {version(package).partition('+')[0]}" for package in ("transformers", "torch"))
        left = len(causal_architectures()) - len({row.architecture for row in rows if row.class_name})
        write_text(page, make_page(rows, versions, left))
    return int(any(row.verdict in BROKEN for row in rows))


def _line(row: Row) -> str:
    if row.verdict is not Verdict.EXACT:
        return f"{row.architecture}: {row.verdict}: {row.words}"
    parts = [f"{row.batching} rows", f"{row.num_quantized} matrices in 4 bits"]
    parts += [f"logits {row.head}"] if row.head else []
    parts += [f"{row.experts} experts"] if row.experts else []
    parts += [f"{', '.join(row.dense)} in 16 bits"] if row.dense else []
    parts += [words for words in row.calibrations.values() if words != "exact"]
    return f"{row.architecture}: exact: {'; '.join(parts)}"
