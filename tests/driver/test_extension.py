"""A finished run that is asked for more steps: what is taken, what is refused and why, and what becomes of its end."""

from __future__ import annotations

import json
import math
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from rayqd.audit import audit_step
from rayqd.config import Config
from rayqd.data.plan import make_plan
from rayqd.driver.extension import begin_audit, describe_rate, extend
from rayqd.errors import RunError
from rayqd.events import Arm, ArmResult, Fidelity
from rayqd.runs.config_file import load_run_config
from rayqd.runs.directory import RunDirectory, describe_run_dir
from rayqd.runs.extension import is_done
from rayqd.runs.result_file import DistillResult
from rayqd.runs.storage.folder import Folder

FIDELITY = Fidelity(kl_to_teacher=0.1, total_variation=0.1, top1_agreement=0.9, perplexity=9.0, num_tokens=4)
ROWS = tuple(ArmResult(arm=Arm.from_name(n), fidelity=FIDELITY) for n in ("teacher", "distilled INT4"))
ALL_ROWS = [36]  # of the data, read by runs of any length here


def make(tmp_path: Path, steps: int, **sections: Any) -> Config:
    learner = {"steps": steps, "batch_size": 4, **sections.pop("learner", {})}
    return Config(runs_dir=tmp_path, name="mine", model={"name": "smollm2-135m"}, learner=learner, **sections)


def finish(config: Config, reason: str | None = None) -> None:
    """Leave what a run of all its steps leaves, as far as it counts here."""
    steps = config.learner.steps
    result = DistillResult(
        name="mine", rows=ROWS, seconds={"total": 1.0}, start_seconds={}, num_steps=steps, exported_step=steps,
        reason=reason,
    )  # fmt: skip
    with closing(RunDirectory(config)) as run_dir:
        run_dir.audit.begin(asdict(make_plan(config, ALL_ROWS)))
        run_dir.audit.append([audit_step(1, [], 0)])
        (run_dir.path / "checkpoints" / f"step-{steps:06d}").mkdir(parents=True, exist_ok=True)
        run_dir.finish(result)


def test_more_steps_take_over_the_directory_once_the_data_is_known_to_be_the_same(tmp_path: Path) -> None:
    short, long = make(tmp_path, 16), make(tmp_path, 24)
    finish(short)
    for name in ("eval", "export", "export-gguf", "export-step-000008"):  # the last one of an extension before
        (tmp_path / "mine" / name).mkdir()
    assert describe_run_dir(long) == "a run of 16 steps that has finished, and would go on to 24"
    with closing(RunDirectory(long)) as run_dir:
        assert load_run_config(run_dir.path / "config.toml") == short  # nothing is changed yet
        assert not is_done(run_dir.result, long)
        begin_audit(run_dir, long, ALL_ROWS)
        lines = extend(run_dir, long)
        assert run_dir.result is None
    assert lines[0].endswith("mine goes on to step 24; what it came to is in result-step-000016.json")
    assert lines[1].startswith("export-gguf in ")
    assert (run_dir.path / "export-step-000016").is_dir()
    assert not (run_dir.path / "export").exists()
    assert load_run_config(run_dir.path / "config.toml") == long
    assert json.loads((run_dir.path / "result-step-000016.json").read_text())["num_steps"] == 16
    assert (run_dir.path / "eval-step-000016").is_dir()  # of the export before
    assert not (run_dir.path / "eval").exists()
    with closing(RunDirectory(long)) as run_dir:  # as any run that was stopped
        assert run_dir.extends is None
    with pytest.raises(RunError, match=r"learner\.steps: 24 -> 16"):
        RunDirectory(short)


def test_an_extension_that_is_killed_while_it_sets_things_aside_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    short, long = make(tmp_path, 16), make(tmp_path, 24)
    finish(short)
    (tmp_path / "mine" / "eval").mkdir()
    (tmp_path / "mine" / "export").mkdir()

    def kill(*_: Any) -> Path:
        raise KeyboardInterrupt

    rename = Path.replace
    for dies_at in ("export", "eval", "result.json"):
        with closing(RunDirectory(long)) as run_dir, monkeypatch.context() as patch:
            patch.setattr(Path, "replace", lambda at, to, name=dies_at: kill() if at.name == name else rename(at, to))
            assert not is_done(run_dir.result, long)
            with pytest.raises(KeyboardInterrupt):
                extend(run_dir, long)
    with closing(RunDirectory(long)) as run_dir:
        extend(run_dir, long)
        assert run_dir.result is None
    left = {path.name for path in run_dir.path.iterdir()}
    assert left >= {"export-step-000016", "eval-step-000016", "result-step-000016.json"}
    assert left.isdisjoint({"export", "eval", "result.json"})


def test_a_run_that_read_only_part_of_its_data_is_not_made_longer_and_stays_as_it_was(tmp_path: Path) -> None:
    short, long = make(tmp_path, 16), make(tmp_path, 24)
    finish(short)
    with closing(RunDirectory(long)) as run_dir:
        with pytest.raises(RunError, match=r"took part of the data's rows, and a run of 24 takes more of them"):
            begin_audit(run_dir, long, [96])
        assert is_done(run_dir.result, short)
    with closing(RunDirectory(short)):
        pass


def test_what_is_not_finished_or_differs_elsewhere_is_no_extension(tmp_path: Path) -> None:
    with closing(RunDirectory(make(tmp_path, 16))) as run_dir:
        run_dir.audit.begin({"any": 1})
        (run_dir.path / "metrics.jsonl").touch()
    with pytest.raises(RunError, match=r"learner\.steps: 16 -> 24"):
        RunDirectory(make(tmp_path, 24))
    finish(make(tmp_path, 16))
    with pytest.raises(RunError, match=r"seed: 42 -> 7; learner\.steps: 16 -> 24"):
        RunDirectory(make(tmp_path, 24, seed=7))


@pytest.mark.parametrize("with_storage", [False, True])
def test_without_a_checkpoint_there_is_nothing_to_go_on_from(with_storage: bool, tmp_path: Path) -> None:
    sections = {"storage": str(tmp_path / "store")} if with_storage else {}
    finish(make(tmp_path / "runs", 16, **sections))
    checkpoints = tmp_path / "runs" / "mine" / "checkpoints"
    (checkpoints / "step-000016").rename(checkpoints / "step-000016-damaged")
    long = make(tmp_path / "runs", 24, **sections)
    with closing(RunDirectory(long)) as run_dir:
        with pytest.raises(RunError) as told:
            extend(run_dir, long)
        assert is_done(run_dir.result, make(tmp_path, 16))  # nothing was set aside
    assert str(told.value).startswith(f"{run_dir.path} has finished, and no checkpoint of it is there")
    assert ("/store/mine" in str(told.value)) == with_storage
    assert load_run_config(run_dir.path / "config.toml").learner.steps == 16

    if with_storage:
        (checkpoints / "step-000016-damaged" / "a").touch()
        Folder.open(f"{tmp_path}/store/mine/checkpoints").put(checkpoints / "step-000016-damaged", "step-000016")
        with closing(RunDirectory(long)) as run_dir:
            assert extend(run_dir, long)


def test_a_run_that_ended_early_would_end_there_again(tmp_path: Path) -> None:
    patient = {"eval": {"every": 2, "patience": 2}}
    finish(make(tmp_path, 16, **patient), reason="kl_to_teacher was not better in 2 evaluations than after step 8")
    with pytest.raises(RunError, match=r"early, as kl_to_teacher was not better.*larger eval\.patience another name"):
        RunDirectory(make(tmp_path, 24, **patient))


def test_steps_that_are_done_stay_off_policy_and_the_share_that_says_so_is_told(tmp_path: Path) -> None:
    finish(make(tmp_path, 16, distill={"on_policy_after": 0.5}))
    with pytest.raises(RunError) as told:
        RunDirectory(make(tmp_path, 24, distill={"on_policy_after": 0.5}))
    assert str(told.value).endswith("--distill.on_policy_after 0.333333333333 leaves them as they were")
    with closing(RunDirectory(make(tmp_path, 24, distill={"on_policy_after": 0.333333333333}))) as run_dir:
        assert run_dir.extends is not None


def test_what_the_learning_rate_does_is_said(tmp_path: Path) -> None:
    def rate(**settings: Any) -> str:
        learner = {"lr": 1e-3, "warmup_ratio": 0.0, **settings}
        return describe_rate(*(make(tmp_path, n, learner=learner).learner for n in (16, 32)))

    assert rate(schedule="constant") == "learning rate: 0.001, as in a run of 32 steps from its start"
    # Step 17 of 32 is half way between the first and one after the last: 1 - 17/33; the last of 16 was 1 - 16/17.
    assert rate(schedule="linear") == (
        f"learning rate: {1e-3 * (1 - 17 / 33):.2g} at step 17, after {1e-3 / 17:.2g} at the last one: schedule linear "
        "is now over 32 steps, and the steps that are done had other rates than in a run of 32 from its start"
    )
    cosine = 1e-3 * (1 + math.cos(math.pi * 17 / 33)) / 2
    assert rate(schedule="cosine").startswith(f"learning rate: {cosine:.2g} at step 17")
    assert "warm-up of 0.5 is now over 32 steps" in rate(schedule="constant", warmup_ratio=0.5)
