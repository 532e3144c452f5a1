"""Whole runs on real actors and a real Ray Train learner; only the engine is fake and the model tiny."""

import contextlib
import functools
import hashlib
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from rayqd.commands.distill import distill
from rayqd.commands.doctor_run import examine_run
from rayqd.config import Config
from rayqd.config.resolved import to_toml
from rayqd.errors import ConfigError, PlacementError, RunError, WorkerError
from rayqd.rollout.fake import FakeEngine
from rayqd.runs.audit_file import read_audit
from rayqd.runs.record import read_run

pytestmark = [pytest.mark.slow, pytest.mark.ray]

STEPS = 16
SCRIPT = """
import functools, signal, sys
import rayqd.cli
from rayqd.commands import distill
from rayqd.rollout.fake import FakeEngine
distill.distill = functools.partial(distill.distill, make_engine=functools.partial(FakeEngine, 128))
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it, their children too
sys.exit(rayqd.cli.main(["distill", *sys.argv[1:]]))
"""

LOSS = """
def squared_error(student_logits, teacher_logits, *, beta, temperature):
    return (student_logits - teacher_logits).square().mean(-1)
"""


def run(config: Any) -> tuple[Any, str]:
    output = io.StringIO()
    result = distill(config, Console(file=output, width=160), make_engine=functools.partial(FakeEngine, 128))
    return result, output.getvalue()


def steps(run_dir: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if row["event"] == "step"]


def trained(run_dir: Path) -> list[list[Any]]:
    """Return of each step the rows and whether the student wrote them, the tokens, and the weights after it."""
    rows = [row for row in read_audit(run_dir / "audit.jsonl") if row and "step" in row]
    return [[row[name] for name in ("step", "drawn", "tokens", "weights")] for row in rows]


@dataclass(frozen=True, slots=True)
class Finished:
    """A run that nobody interrupted, from the working directory with the user's loss."""

    config: Config
    result: Any  # a Result
    output: str
    where: Path


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, tiny_data: Path) -> Finished:
    """Two learner workers and two rollout workers, GPTQ, and a loss of the user's own.

    Workers have working directories of their own: a relative path must still be the user's, and so must the module of
    the loss, which lies on no path.
    """
    where = tmp_path_factory.mktemp("users")
    (where / "loss_of_mine.py").write_text(LOSS)
    config = config_of_the_run("whole", tiny_model, tiny_data)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(where)
        patch.setattr(sys, "path", list(sys.path))
        result, output = run(config)
    return Finished(config, result, output, where)


@pytest.fixture
def _where_the_loss_is(whole: Finished, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(whole.where)
    monkeypatch.setattr(sys, "path", list(sys.path))


def config_of_the_run(name: str, model: Path, data: Path, **sections: Any) -> Config:
    base: dict[str, Any] = {
        "name": name,
        "runs_dir": "runs",
        "model": {"name": str(model)},
        "quant": {"group_size": 64, "init": "gptq", "calibration_tokens": 400},
        "adapter": {"rank": 4},
        "data": {"source": str(data), "max_length": 128, "min_room": 8},
        "eval": {"num_rows": 4},
        "distill": {"lmbda": 0.5, "beta": 0.5, "loss": "loss_of_mine:squared_error"},
        "rollout": {"num_workers": 2, "min_new_tokens": 4, "max_new_tokens": 12, "max_concurrent": 8},
        "learner": {"num_workers": 2, "steps": STEPS, "batch_size": 4, "lr": 1e-3},
        "checkpoint": {"every": 2},
    }
    return Config.model_validate(base | {key: base[key] | changed for key, changed in sections.items()})


@pytest.mark.usefixtures("_where_the_loss_is")
def test_a_run_on_a_loss_of_the_users_own_leaves_metrics_result_checkpoints_and_an_export(
    whole: Finished, tiny_model: Path, tiny_data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result, output = whole.result, whole.output
    rows = steps(result.run_dir)
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
    assert [row["num_on_policy"] for row in rows] == [2] * STEPS
    assert {row["staleness"] for row in rows} == {0}
    assert all(row["loss"] > 0 and row["rollout_tokens_per_second"] > 0 for row in rows)
    assert [row["arm"] for row in result.rows] == [
        "teacher",
        "round-to-nearest INT4",
        "GPTQ INT4",
        "distilled INT4",
    ]
    teacher, rounded, initial, distilled = result.rows
    assert teacher["kl_to_teacher"] == 0
    assert rounded["kl_to_teacher"] > 0
    assert distilled["kl_to_teacher"] != initial["kl_to_teacher"]
    # 4 bits, a 16-bit scale for 64 weights, and the shape of each layer, two int64: 14 layers of 2 · 147,456 weights
    assert rounded["bits_by_kind"]["linear"] == 4 + 16 / 64 + 14 * 128 / (2 * 147_456)
    assert rounded["bits_by_kind"]["embedding"] == 16
    kept = [f"step-{step:06d}" for step in (STEPS - 2, STEPS)]
    assert sorted(p.name for p in (result.run_dir / "checkpoints").iterdir()) == kept
    assert json.loads((result.run_dir / "result.json").read_text())["rows"] == result.rows
    assert "vllm serve" in output
    assert read_run(result.run_dir).state == "finished"
    assert 'loss = "loss_of_mine:squared_error"' in (result.run_dir / "config.toml").read_text()
    versions = json.loads((result.run_dir / "result.json").read_text())["environment"]["versions"]
    assert versions["loss_of_mine:squared_error"] == f"sha256 {hashlib.sha256(LOSS.encode()).hexdigest()}"

    written = [json.loads(line) for line in (result.run_dir / "metrics.jsonl").read_text().splitlines()]
    assert result.metrics() == [{name: row[name] for name in row if name != "checksum"} for row in written]
    assert result.kl_to_teacher == {row["arm"]: row["kl_to_teacher"] for row in (rounded, initial, distilled)}
    kl = {arm: round(value, 4) for arm, value in result.kl_to_teacher.items()}
    assert repr(result) == f"Result(name='whole', kl_to_teacher={kl})"

    assert examine_run(result.run_dir) == 0
    told = capsys.readouterr().out
    assert (
        f"all {STEPS} steps are as planned, {4 * STEPS} sequences, each trained on once; {2 * STEPS} written by the "
        "student, at most 0 " in told
    )
    assert "2 checkpoints hold the weights that were trained" in told

    again, output = run(whole.config)
    assert "has finished already" in output
    assert again.rows == result.rows

    exported = {path.name for path in (Path("runs") / "whole" / "export").iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= exported

    changed = config_of_the_run("whole", tiny_model, tiny_data, rollout={"num_workers": 1}, learner={"lr": 2e-3})
    with pytest.raises(RunError, match=r"another configuration \(learner.lr: 0.001 -> 0.002\)"):
        run(changed)


@pytest.mark.usefixtures("_where_the_loss_is")
def test_a_run_interrupted_and_resumed_exports_the_same_bits_as_one_that_was_not(
    whole: Finished, tiny_model: Path, tiny_data: Path, tmp_path: Path
) -> None:
    expected = whole.result
    auto = {"max_staleness": "auto"}  # where roles share cores that is 0
    interrupted = config_of_the_run("interrupted", tiny_model, tiny_data, rollout=auto)
    file = tmp_path / "config.toml"
    file.write_text(to_toml(interrupted))
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, f"@{file}", f"--runs-dir={whole.where / 'runs'}"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    run_dir = whole.where / interrupted.run_dir
    wait_for(run_dir / "checkpoints" / "step-000002", process)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130, output
    assert output.rstrip().splitlines()[-1].startswith("rayqd: stopped")
    assert "Traceback" not in output
    assert not (run_dir / "result.json").exists()
    assert processes_of(run_dir) == []
    assert read_run(run_dir).state == "stopped"

    resumed, output = run(interrupted)
    assert "resuming after step" in output
    assert "rollout.max_staleness auto: 0, as it was chosen before" in output
    assert [row["max_staleness"] for row in steps(resumed.run_dir)] == [0] * STEPS
    assert [row["step"] for row in steps(resumed.run_dir)] == list(range(1, STEPS + 1))
    assert {row["staleness"] for row in steps(resumed.run_dir)} == {0}  # so the weights that wrote are the same, too
    assert [examine_run(each.run_dir) for each in (expected, resumed)] == [0, 0]
    assert trained(expected.run_dir) == trained(resumed.run_dir)
    left, right = (load_file(r.export_dir / "model.safetensors") for r in (expected, resumed))
    assert left.keys() == right.keys()
    for name in left:
        assert torch.equal(left[name], right[name]), name


STANDING_LOSS = """
import time
from dataclasses import dataclass
from pathlib import Path
def standing(student_logits, teacher_logits, *, beta, temperature):
    if Path("AUDIT").exists():  # so the first step, which may compile, is done
        time.sleep(600)
    return (student_logits - teacher_logits).square().mean(-1)
"""


def test_a_learner_that_stands_still_is_started_once_more_and_then_the_run_ends_with_where_it_stood(
    tiny_config: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # where the module of the loss is looked for
    monkeypatch.setattr(sys, "path", list(sys.path))
    own_loss = {"lmbda": 0.0, "loss": "standing_loss:standing"}
    config = tiny_config(distill=own_loss, ray={"stall_seconds": 5}, learner={"steps": 1000})
    (tmp_path / "standing_loss.py").write_text(STANDING_LOSS.replace("AUDIT", str(config.run_dir / "audit.jsonl")))
    output = io.StringIO()
    stood = r"learner-0 ended no microbatch for ray.stall_seconds=5, at .*standing_loss.*"
    with pytest.raises(WorkerError, match=f"^{stood}, and it did so before it was started again"):
        distill(config, Console(file=output, width=300), make_engine=functools.partial(FakeEngine, 128))
    assert re.search(rf"^{stood}; it is started again and goes on from the last checkpoint$", output.getvalue(), re.M)
    assert read_run(config.run_dir).state == "failed"


def test_a_cluster_without_room_is_told_at_once(tiny_config: Any) -> None:
    with pytest.raises(PlacementError, match=r"the cluster has .* CPUs and .* 900 rollout worker\(s\)"):
        run(tiny_config(rollout={"num_workers": 900}))


def test_an_error_in_a_worker_is_one_clear_line(tiny_config: Any) -> None:
    config = tiny_config()

    class Broken:
        def __init__(self) -> None:
            raise ConfigError("the engine does not like this")

    with pytest.raises(ConfigError, match=r"^the engine does not like this$"):
        distill(config, Console(file=io.StringIO()), make_engine=Broken)
    record = read_run(config.run_dir)
    assert (record.state, record.error, record.exit_code) == ("failed", "the engine does not like this", 2)


def wait_for(path: Path, process: subprocess.Popen[str]) -> None:
    for _ in range(6000):
        if path.exists():
            return
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.02)
    raise AssertionError(f"{path} did not appear")


def processes_of(run_dir: Path) -> list[str]:
    """Command lines of the processes of the Ray session that the run started: each has its log there open.

    Those that are about to end are given ten seconds.
    """
    session = str((run_dir / "logs").readlink())
    deadline = time.monotonic() + 10
    while (found := _processes_with(session)) and time.monotonic() < deadline:
        time.sleep(0.1)
    return found


def _processes_with(directory: str) -> list[str]:
    found: list[str] = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            files = [os.readlink(file) for file in Path(f"/proc/{process.pid}/fd").iterdir()]
            if any(file.startswith(directory) for file in files):
                found.append(" ".join(process.cmdline()))
    return found
