"""One bit of any file of a run is another: whoever reads it says so, in a line; nobody takes it, and nobody crashes."""

from __future__ import annotations

import random
import shutil
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from run_directories import result_of

from rayqd.audit import Call, SequenceAudit, audit_step
from rayqd.commands.doctor_run import examine_run
from rayqd.config import Config
from rayqd.data.plan import Plan
from rayqd.errors import RayqdError
from rayqd.learner.checkpoint import Checkpoints
from rayqd.learner.distributed import SingleProcess
from rayqd.learner.initialization import Initialization
from rayqd.learner.worker import LearnerWorker
from rayqd.model.load import load_model
from rayqd.report.write import rewrite_report
from rayqd.runs.directory import RunDirectory
from rayqd.runs.record import read_run
from rayqd.teacher.forward import Teacher
from rayqd.types import ScoredRollout
from tests.example_events import eval_event, step_event
from tests.learner.fake_feed import FakeFeed

pytestmark = pytest.mark.slow

FLIPS_EACH = 5  # of each file
HARMLESS = {"report.html", "lease.json", ".lock"}  # nobody reads them, or a damaged one is nobody's


@pytest.fixture
def finished(tiny_config: Any, tiny_model: Path, make_rollouts: Any) -> Config:
    """A run of four steps as it is when it has finished, without Ray."""
    config = tiny_config(model={"dtype": "float32"}, checkpoint={"keep": 1}, distill={"lmbda": 0.0})
    rollouts = make_rollouts((5, 9), (17, 3))
    payloads = Teacher(load_model(tiny_model, "float32"), 8192).hidden(rollouts)
    rows = [ScoredRollout(rollout=r, payload=p) for r, p in zip(rollouts, payloads, strict=True)]
    run_dir = RunDirectory(config)
    LearnerWorker(config, FakeFeed(rows), SingleProcess()).run()
    plan = Plan(num_examples=(36,), batch_size=4, lmbda=0.0, seed=config.seed)
    run_dir.audit.begin(asdict(plan))
    run_dir.append(eval_event("round-to-nearest INT4", 0.5), 0.0)
    for step in range(1, 5):
        run_dir.append(step_event(step), float(step))
        sequences = [
            SequenceAudit(
                index=planned.index,
                example=planned.example,
                version=None,
                tokens="0" * 16,
                wrote=Call(worker="data"),
                scored=Call(worker="teacher-0"),
            )
            for planned in plan.step(step - 1)
        ]
        run_dir.audit.append([audit_step(step, sequences)])
    run_dir.finish(result_of(config.name, 0.1))
    run_dir.close()
    return config


def remarks(config: Config, capsys: pytest.CaptureFixture[str]) -> Iterator[str]:
    """Everything that `rayqd runs`, the report, `rayqd doctor RUN` and a resumed run say of damage."""
    yield read_run(config.run_dir).problem
    capsys.readouterr()
    rewrite_report(config.run_dir)
    yield capsys.readouterr().out if examine_run(config.run_dir) else ""
    run_dir = RunDirectory(config)
    try:
        yield run_dir.set_damaged_result_aside() or ""
        yield run_dir.forget_metrics_after(4) or ""
        yield from Checkpoints(config.run_dir / "checkpoints", keep=1).set_damaged_aside()
        yield from Initialization(config).set_damaged_aside()
    finally:
        run_dir.close()


def told(config: Config, capsys: pytest.CaptureFixture[str]) -> str:
    try:
        return "".join(remarks(config, capsys))
    except RayqdError as error:
        return str(error)


def test_a_flipped_bit_of_any_file_is_told_and_no_traceback(
    finished: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert told(finished, capsys) == ""
    whole = tmp_path / "whole"
    shutil.copytree(finished.run_dir, whole, ignore=shutil.ignore_patterns("export"))
    files = sorted(file.relative_to(whole) for file in whole.rglob("*") if file.is_file() and file.stat().st_size)
    assert {"config.toml", "metrics.jsonl", "audit.jsonl", "result.json"} <= {file.name for file in files}
    assert sum(file.parts[0] in ("checkpoints", "start") for file in files) >= 5
    draw = random.Random(0)
    silent: list[tuple[str, int]] = []
    for file in files:
        content = (whole / file).read_bytes()
        last = {len(content) - 1} if file.suffix == ".jsonl" else set[int]()
        for place in {*draw.sample(range(len(content) - 1), FLIPS_EACH), *last}:
            shutil.rmtree(finished.run_dir)
            shutil.copytree(whole, finished.run_dir)
            flipped = bytearray(content)
            flipped[place] ^= 1 << draw.randrange(8)
            (finished.run_dir / file).write_bytes(flipped)
            if not told(finished, capsys) and file.name not in HARMLESS:
                silent.append((str(file), place))
    # A last line without its newline is one in the making, and is made again; config.toml's last line seals the others.
    ends = {(str(file), (whole / file).stat().st_size - 1) for file in files if file.suffix == ".jsonl"}
    seal = (whole / "config.toml").read_bytes().rindex(b"# written by")
    assert {each for each in silent if each[0] != "config.toml" or each[1] < seal} <= ends
