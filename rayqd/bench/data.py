"""How soon a source's rows are read, rendered, tokenized and planned: with nothing kept of them, and once more.

Each time is a process of its own, as a run's driver is, so that imports and memory count from nothing.
"""

from __future__ import annotations

import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path

import psutil

from rayqd.config import Config
from rayqd.config.resolved import to_toml, with_absolute_paths, with_values
from rayqd.data.sources import QUICKSTART_FILES, open_table
from rayqd.errors import RunError
from rayqd.model.source import tokenizer_directory

TIMES = ("first", "second")
_LOOK_EVERY = 0.5  # seconds
_PROMPT_WORDS, _ANSWER_WORDS = 18, 24  # of a row that is made up


@dataclass(frozen=True, slots=True, kw_only=True)
class DataTiming:
    """One time. Seconds are of wall time, memory is what was resident at the worst moment."""

    start_seconds: float  # imports, and the tokenizer
    read_seconds: float  # until the source is open and its rows are counted
    tokenize_seconds: float  # parsing, rendering and tokenizing; or mapping what was kept
    plan_seconds: float  # lengths, duplicates, and what the first step trains on
    num_rows: int
    num_examples: int
    num_tokens: int
    peak_bytes: int  # of the process itself
    largest_child_bytes: int  # of those that tokenize; 0 where there were none, or the system does not tell

    @property
    def seconds(self) -> float:
        """Everything but the start."""
        return self.read_seconds + self.tokenize_seconds + self.plan_seconds


def bench_data(config: Config, num_rows: int | None) -> Iterator[DataTiming]:
    """Yield the first and the second time of `num_rows` made-up rows, or without a number of those of `data.source`.

    Raises RunError with the last line of a process that fails, and what `tokenizer_directory` raises.
    """
    directory = tokenizer_directory(config)
    with tempfile.TemporaryDirectory(prefix="rayqd-data-") as scratch:
        own = with_values(with_absolute_paths(config), {"model.name": str(directory)})
        if num_rows is not None:
            rows = Path(scratch) / "rows.jsonl"
            write_rows(rows, num_rows)
            own = with_values(own, {"data.source": str(rows), "data.sources": [], "data.split": "train"})
        file = Path(scratch) / "bench.toml"
        file.write_text(to_toml(own))
        for _ in TIMES:
            yield _run(file, Path(scratch))


def write_rows(file: Path, num_rows: int) -> None:
    """Write prompts and completions of words of the quickstart's data, which is about 80 tokens a row."""
    table = open_table("quickstart", next(iter(QUICKSTART_FILES)), None)
    assert table is not None
    text = json.dumps([table.fetch(index) for index in range(table.num_rows)])
    words = [word for word in text.split() if word.isalpha()]
    choose = random.Random(0).choices
    with file.open("w", encoding="utf-8") as stream:
        for _ in range(num_rows):
            prompt, answer = (" ".join(choose(words, k=number)) for number in (_PROMPT_WORDS, _ANSWER_WORDS))
            stream.write(json.dumps({"prompt": f"{prompt}?", "completion": f"{answer}."}) + "\n")


def measure(config: Config, began: float) -> DataTiming:
    """Read all rows of `data.source` in this process, which began at `began` of the monotonic clock."""
    from rayqd.data.conversation import row_parser
    from rayqd.data.packed_examples import count_tokens
    from rayqd.data.plan import make_plan
    from rayqd.data.select import row_order, select_examples
    from rayqd.data.sources import read_rows
    from rayqd.model.load import load_tokenizer

    tokenizer = load_tokenizer(tokenizer_directory(config))
    marks = [began, time.monotonic()]
    rows = read_rows(config.data, parse=row_parser(config.data, needs_answer=config.trains_on_answers))
    marks.append(time.monotonic())
    children = _Children()
    order = row_order(len(rows), config.seed)
    found = select_examples(tokenizer, rows, order, config.data, len(rows), on_tokenized=children.look)
    marks.append(time.monotonic())
    num_tokens, _ = int(count_tokens(found.examples).sum()), found.num_duplicates
    for sequence in make_plan(config, found.sizes).step(0):
        found.examples[sequence.example]
    marks.append(time.monotonic())
    start, read, tokenize, plan = (after - before for before, after in pairwise(marks))
    return DataTiming(
        start_seconds=start,
        read_seconds=read,
        tokenize_seconds=tokenize,
        plan_seconds=plan,
        num_rows=len(rows),
        num_examples=len(found.examples),
        num_tokens=num_tokens,
        peak_bytes=_peak_bytes(os.getpid()) or _counted_peak_bytes(),
        largest_child_bytes=children.peak_bytes,
    )


class _Children:
    """The processes that tokenize, looked at now and then while they do."""

    peak_bytes = 0

    def __init__(self) -> None:
        self._due = 0.0  # of the monotonic clock

    def look(self, *_: int) -> None:
        """Take down what was resident of the largest of them at its worst moment."""
        if time.monotonic() >= self._due:
            self._due = time.monotonic() + _LOOK_EVERY
            peaks = [_peak_bytes(child.pid) for child in psutil.Process().children()]
            self.peak_bytes = max([self.peak_bytes, *peaks])


def _peak_bytes(process: int) -> int:
    """Return what was resident at the worst moment since the process's program began; 0 where that is not told."""
    try:
        status = Path(f"/proc/{process}/status").read_text()
    except OSError:
        return 0
    peak = next((line for line in status.splitlines() if line.startswith("VmHWM:")), "VmHWM: 0 kB")
    return int(peak.split()[1]) * 1024


def _counted_peak_bytes() -> int:
    """Return the same where there is no /proc; Linux would count what the parent had when it started this process."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _run(file: Path, scratch: Path) -> DataTiming:
    result = scratch / "result.json"
    code = "import sys; from rayqd.bench.data import main; main(*sys.argv[1:])"
    command = [sys.executable, "-c", code, str(file), str(result), str(time.monotonic())]
    environment = {**os.environ, "RAYQD_CACHE": str(scratch / "cache")}
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if run.returncode:
        raise RunError(f"reading the rows failed: {run.stderr.strip().rpartition(chr(10))[2]}")
    return DataTiming(**json.loads(result.read_text()))


def main(file: str, result: str, began: str) -> None:
    """Measure the settings in `file` and write a DataTiming into `result`; the clock is all processes' of a machine."""
    from rayqd.config.arguments import read_arguments
    from rayqd.config.load import config_of

    timing = measure(config_of(read_arguments([f"@{file}"])), float(began))
    Path(result).write_text(json.dumps(asdict(timing)))
