"""`rayqd compare`: what several runs came to, side by side, and the settings in which they differ."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import JsonValue
from rich.console import Console
from rich.text import Text

from rayqd.commands.runs import plain_console
from rayqd.config.resolved import setting_value
from rayqd.config.sections.markers import RunSpecific
from rayqd.config.settings import settings, value_text
from rayqd.console.progress import duration
from rayqd.console.result_table import format_bits, format_size
from rayqd.console.say import say
from rayqd.console.tables import Cells, Column, print_table
from rayqd.events import TEACHER, ArmResult, ArmRow
from rayqd.runs.metrics_file import read_metrics
from rayqd.runs.record import RunRecord, find_run, read_run

_LONGEST_VALUE = 28  # characters of a setting; of longer ones, which are paths, the end is shown


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """Lines of the table that belong together; a line has a name and a text for each run."""

    title: str
    lines: dict[str, list[str]]
    least_is_best: bool = False


def compare(words: Sequence[str], runs_dir: Path, *, as_json: bool = False, console: Console | None = None) -> None:
    """Print the runs that `words` name beside each other. Raises RunError where one is missing."""
    paths = [find_run(word, runs_dir) for word in words]
    records = [read_run(path, name) for path, name in zip(paths, short_names(paths), strict=True)]
    if as_json:
        print(json.dumps(comparison(records), indent=2))
        return
    console = console or plain_console()
    blocks = list(_blocks(records))
    for some in _that_fit(records, blocks, console.width):
        _print_table(console, some, records, blocks)
    for note in notes(records):
        say(console, note)


def comparison(records: Sequence[RunRecord]) -> dict[str, object]:
    """Return the same for programs."""
    runs = [
        {
            "name": record.name,
            "path": str(record.path),
            "state": record.state,
            "rows": _json_rows(record),
            "seconds": dict(record.result.seconds) if record.result else None,
        }
        for record in records
    ]
    return {"runs": runs, "settings": differing_settings(records), "notes": notes(records)}


def differing_settings(records: Sequence[RunRecord]) -> dict[str, list[object]]:
    """Return the settings that not all runs share, with each run's value; None where its config.toml cannot be read."""
    differing: dict[str, list[object]] = {}
    for key, setting in settings().items():
        if setting.marker(RunSpecific):
            continue
        values = [setting_value(record.config, key) if record.config else None for record in records]
        if any(value != values[0] for value in values):
            differing[key] = values
    return differing


def notes(records: Sequence[RunRecord]) -> list[str]:
    """Return what a reader of the numbers must know."""
    under_way = [r for r in records if not r.result and r.state != "finished"]
    lines = [f"{r.name} is {r.state}: its last numbers are those of step {r.step}" for r in under_way]
    teachers = [row.fidelity for record in records for row in record.rows if row.arm == TEACHER]
    if len({(teacher.num_tokens, teacher.perplexity) for teacher in teachers}) > 1:
        lines.append("measured on different held-out text or against different teachers: these KLs do not compare")
    return lines + [f"{r.name}: {r.problem}" for r in records if r.problem]


def short_names(paths: Sequence[Path]) -> list[str]:
    """Return the last parts of the paths, as many of them as tell the runs apart."""
    parts = [path.resolve().parts for path in paths]
    for count in range(1, max(map(len, parts)) + 1):
        names = ["/".join(path[-count:]) for path in parts]
        if len(set(names)) == len(set(parts)):
            return names
    raise AssertionError("unreachable")


def _blocks(records: Sequence[RunRecord]) -> Iterator[Block]:
    differing = {key: [_setting_text(v) for v in values] for key, values in differing_settings(records).items()}
    if differing:
        yield Block(title="settings that differ", lines=differing)
    students = [record.students for record in records]
    kl = _by_arm(students, lambda row: f"{row.fidelity.kl_to_teacher:.4f}")
    yield Block(title="KL to teacher", lines=kl, least_is_best=True)
    yield Block(title="same top-1", lines=_by_arm(students, lambda row: f"{row.fidelity.top1_agreement:.1%}"))
    everyone = [record.rows for record in records]
    yield Block(title="perplexity", lines=_by_arm(everyone, lambda row: f"{row.fidelity.perplexity:.3f}"))
    last = [rows[-1] if rows else None for rows in everyone]
    yield Block(
        title="size and time",
        lines={
            "bits/weight": [format_bits(row) if row else "-" for row in last],
            "size": [format_size(row) if row else "-" for row in last],
            "steps": [str(record.step) if record.trains else "-" for record in records],
            "time": [duration(record.result.seconds["total"]) if record.result else "-" for record in records],
        },
    )


def _by_arm(by_run: Sequence[Sequence[ArmResult]], text: Callable[[ArmResult], str]) -> dict[str, list[str]]:
    """Return a line for each arm that some run has, in the order of the runs; a dash where a run has not got it."""
    texts = [{row.arm.name: text(row) for row in rows} for rows in by_run]
    arms = dict.fromkeys(arm for lines in texts for arm in lines)
    return {arm: [lines.get(arm, "-") for lines in texts] for arm in arms}


def _json_rows(record: RunRecord) -> Sequence[ArmRow] | Sequence[Mapping[str, JsonValue]]:
    """Return the rows of result.json, or while there is none the evaluations in metrics.jsonl."""
    if record.result:
        return [row.to_json() for row in record.result.rows]
    return [row for row in read_metrics(record.path) if row.get("event") == "eval"]


def _setting_text(value: object) -> str:
    text = value if isinstance(value, str) else value_text(value)
    return text if len(text) <= _LONGEST_VALUE else f"…{text[1 - _LONGEST_VALUE :]}"


def _that_fit(records: Sequence[RunRecord], blocks: Sequence[Block], width: int) -> Iterator[list[int]]:
    """Yield the runs' numbers in portions whose columns fit into `width` characters."""
    left = min(max(len(name) for block in blocks for name in block.lines) + 2, width // 3) + 2
    portion: list[int] = []
    taken = left
    for i, record in enumerate(records):
        texts = [record.name, *(texts[i] for block in blocks for texts in block.lines.values())]
        column = max(map(len, texts)) + 2
        if portion and taken + column > width:
            yield portion
            portion, taken = [], left
        portion.append(i)
        taken += column
    yield portion


def _print_table(
    console: Console, portion: Sequence[int], records: Sequence[RunRecord], blocks: Sequence[Block]
) -> None:
    columns = [Column(heading="", is_label=True), *(Column(heading=records[i].name) for i in portion)]
    rows: list[Cells] = []
    for block in blocks:
        rows.append([Text(block.title, style="bold"), *([""] * len(portion))])
        numbers = [text for texts in block.lines.values() for text in texts if text != "-"]
        best = min(numbers, default="", key=float) if block.least_is_best else ""
        for name, texts in block.lines.items():
            cells = [Text(texts[i], style="green" if best and texts[i] == best else "") for i in portion]
            rows.append([Text(f"  {name}"), *cells])
    print_table(console, columns, [*rows, [""] * len(columns)], boxed=False)
