"""`rayqd bench data`: what a run does before its first step with a million rows, as a table."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

from rich.console import Console

from rayqd.bench.data import TIMES, DataTiming, bench_data
from rayqd.config import Config
from rayqd.config.arguments import Arguments, read_arguments
from rayqd.config.load import config_of
from rayqd.console.say import say
from rayqd.console.tables import Column, print_table
from rayqd.errors import ConfigError
from rayqd.runs.environment import collect_environment

DEFAULT_ROWS = 1_000_000
_SMOLLM2 = ("--model.name", "smollm2-135m")


def data_config(arguments: Arguments) -> Config:
    """Return what is to be read: without a file of settings by the tokenizer of a small model, with the flags given."""
    if arguments.files:
        return config_of(arguments)
    return config_of(replace(arguments, flags=(*read_arguments(_SMOLLM2).flags, *arguments.flags)))


def rows_to_make(arguments: Arguments, rows: str | None) -> int | None:
    """Return how many rows are made up; None where those of the settings' own source are read.

    Raises ConfigError where both are asked for.
    """
    names_source = bool(arguments.files) or any(flag.key.startswith("data.source") for flag in arguments.flags)
    if rows is None:
        return None if names_source else DEFAULT_ROWS
    if names_source:
        raise ConfigError(f"flag --rows={rows}: the settings name a source, whose rows are read; leave one of them out")
    if not rows.isdecimal() or int(rows) < 1:
        raise ConfigError(f"flag --rows={rows}: must be a whole number from 1")
    return int(rows)


def benchmark_data(
    config: Config, num_rows: int | None, json_file: Path | None, console: Console | None = None
) -> list[DataTiming]:
    """Read the rows twice, the second time with what the first one kept, and print what that took."""
    if config.data.sources:
        raise ConfigError("rayqd bench data reads one source: name it as data.source, without data.sources")
    console = console or Console()
    timings = list(bench_data(config, num_rows))
    first = timings[0]
    machine = collect_environment().machine
    title = f"data: {first.num_rows:,} rows, {first.num_tokens:,} tokens, {machine.cores} cores ({machine.processor})"
    columns = [Column(heading=name, is_label=i == 0) for i, name in enumerate(_cells("", first))]
    rows = [list(_cells(name, timing).values()) for name, timing in zip(TIMES, timings, strict=True)]
    print_table(console, columns, rows, title=title)
    if json_file is not None:
        times = [{"time": name, **asdict(timing)} for name, timing in zip(TIMES, timings, strict=True)]
        json_file.write_text(json.dumps({"kind": "data", "times": times, "machine": asdict(machine)}, indent=2) + "\n")
        say(console, f"written to {json_file}")
    return timings


def _cells(name: str, timing: DataTiming) -> dict[str, str]:
    return {
        "time": name,
        "start, s": f"{timing.start_seconds:.1f}",
        "read, s": f"{timing.read_seconds:.1f}",
        "tokenize, s": f"{timing.tokenize_seconds:.1f}",
        "plan, s": f"{timing.plan_seconds:.1f}",
        "rows/s": f"{timing.num_rows / timing.seconds:,.0f}",
        "peak MiB": f"{timing.peak_bytes / 2**20:,.0f}",
        "a process's MiB": f"{timing.largest_child_bytes / 2**20:,.0f}",
    }
