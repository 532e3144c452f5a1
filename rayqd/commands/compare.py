"""`rayqd compare`: what several runs came to, side by side, and the settings in which they differ."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from rayqd.commands.runs import plain_console
from rayqd.config.resolved import setting_value
from rayqd.config.sections.markers import RunSpecific
from rayqd.config.settings import settings, value_text
from rayqd.console.progress import duration
from rayqd.console.say import say
from rayqd.runs.record import RunRecord, find_run, read_run

_LONGEST_VALUE = 28  # characters of a setting; of longer ones, which are paths, the end is shown


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """Lines of the table that belong together; a line has a name and a text for each run."""

    title: str
    lines: dict[str, list[str]]
    least_is_best: bool = False


def compare(words: Sequence[str], runs_dir: Path, *, as_json: bool = False, console: Console | None = None) -> None:
    """Prints the runs that `words` name beside each other. Raises RunError where one is missing."""
    paths = [find_run(word, runs_dir) for word in words]
    records = [read_run(path, name) for path, name in zip(paths, short_names(paths), strict=True)]
    if as_json:
        print(json.dumps(comparison(records), indent=2))
        return
    console = console or plain_console()
    blocks = list(_blocks(records))
    for some in _that_fit(records, blocks, console.width):
        console.print(_table(some, records, blocks))
    for note in notes(records):
        say(console, note)


def comparison(records: Sequence[RunRecord]) -> dict[str, Any]:
    """The same for programs."""
    runs = [
        {
            "name": record.name,
            "path": str(record.path),
            "state": record.state,
            "rows": record.rows,
            "seconds": (record.result or {}).get("seconds"),
        }
        for record in records
    ]
    return {"runs": runs, "settings": differing_settings(records), "notes": notes(records)}


def differing_settings(records: Sequence[RunRecord]) -> dict[str, list[Any]]:
    """The settings that not all runs share, with each run's value; null where its config.toml cannot be read."""
    found: dict[str, list[Any]] = {}
    for key, setting in settings().items():
        if setting.marker(RunSpecific):
            continue
        values = [setting_value(record.config, key) if record.config else None for record in records]
        if any(value != values[0] for value in values):
            found[key] = values
    return found


def notes(records: Sequence[RunRecord]) -> list[str]:
    """What a reader of the numbers must know."""
    found = [f"{r.name} is {r.state}: its last numbers are those of step {r.step}" for r in records if not r.result]
    yardsticks = {(row["num_tokens"], row["perplexity"]) for r in records for row in r.rows if row["arm"] == "teacher"}
    if len(yardsticks) > 1:
        found.append("measured on different held-out text or against different teachers: these KLs do not compare")
    return found + [f"{r.name}: {r.problem}" for r in records if r.problem]


def short_names(paths: Sequence[Path]) -> list[str]:
    """The last parts of the paths, as many of them as tell the runs apart."""
    parts = [path.resolve().parts for path in paths]
    for count in range(1, max(map(len, parts)) + 1):
        names = ["/".join(each[-count:]) for each in parts]
        if len(set(names)) == len(set(parts)):
            return names
    raise AssertionError("unreachable")


def _blocks(records: Sequence[RunRecord]) -> Iterator[Block]:
    differing = {key: [_setting_text(v) for v in values] for key, values in differing_settings(records).items()}
    if differing:
        yield Block(title="settings that differ", lines=differing)
    yield Block(
        title="KL to teacher", lines=_by_arm(records, "kl_to_teacher", "{:.4f}", without="teacher"), least_is_best=True
    )
    yield Block(title="same top-1", lines=_by_arm(records, "top1_agreement", "{:.1%}", without="teacher"))
    yield Block(title="perplexity", lines=_by_arm(records, "perplexity", "{:.3f}"))
    last = [(record.rows or [{}])[-1] for record in records]
    results = [record.result or {} for record in records]
    yield Block(
        title="size and time",
        lines={
            "bits/weight": [_text(row.get("bits_per_weight"), "{:g}") for row in last],
            "size": [f"{row['size_bytes'] / 1e6:,.1f} MB" if "size_bytes" in row else "-" for row in last],
            "steps": [str(record.step) if record.trains else "-" for record in records],
            "time": [duration(result["seconds"]["total"]) if "seconds" in result else "-" for result in results],
        },
    )


def _by_arm(records: Sequence[RunRecord], key: str, form: str, without: str = "") -> dict[str, list[str]]:
    """A line for each arm that some run has, in the order of the runs."""
    by_run = [{row["arm"]: row.get(key) for row in record.rows if row["arm"] != without} for record in records]
    arms = dict.fromkeys(arm for rows in by_run for arm in rows)
    return {arm: [_text(rows.get(arm), form) for rows in by_run] for arm in arms}


def _setting_text(value: object) -> str:
    text = value if isinstance(value, str) else value_text(value)
    return text if len(text) <= _LONGEST_VALUE else f"…{text[1 - _LONGEST_VALUE :]}"


def _text(value: float | None, form: str) -> str:
    return "-" if value is None else form.format(value)


def _that_fit(records: Sequence[RunRecord], blocks: Sequence[Block], width: int) -> Iterator[list[int]]:
    """The runs' numbers in portions whose columns fit into `width` characters."""
    left = max(len(name) for block in blocks for name in block.lines) + 4
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


def _table(portion: Sequence[int], records: Sequence[RunRecord], blocks: Sequence[Block]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("", no_wrap=True)
    for i in portion:
        table.add_column(Text(records[i].name), justify="right", no_wrap=True)
    for block in blocks:
        table.add_row(Text(block.title, style="bold"))
        numbers = [text for texts in block.lines.values() for text in texts if text != "-"]
        best = min(numbers, default="", key=float) if block.least_is_best else ""
        for name, texts in block.lines.items():
            cells = (Text(texts[i], style="green" if best and texts[i] == best else "") for i in portion)
            table.add_row(f"  {name}", *cells)
    table.add_row("")
    return table
