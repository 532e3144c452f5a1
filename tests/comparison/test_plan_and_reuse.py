"""Which runs a comparison has, what it takes over from an earlier budget, and what it refuses to take over."""

import importlib.metadata
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_runs import INPUTS, KL, every_job, leave_all, leave_run, make_jobs

from rayqd import versions
from rayqd.comparison.budget import Pace, check_pilots, count_accelerators, fit_steps, read_pace, steps_of_arms
from rayqd.comparison.charts import pareto
from rayqd.comparison.cost import EARLIER, add_costs, cost_of_run
from rayqd.comparison.directory import ComparisonDirectory, check_directory
from rayqd.comparison.execute import is_finished
from rayqd.comparison.inputs import collect_inputs, digest_model
from rayqd.comparison.jobs import Jobs
from rayqd.comparison.outcomes import read_outcome
from rayqd.config.comparison import load_comparison
from rayqd.config.sections.compare import Budget
from rayqd.data import ExampleSet
from rayqd.errors import ConfigError, RunError
from rayqd.runs.directory import RunDirectory
from rayqd.runs.environment import ClusterSize, Environment, Machine
from rayqd.runs.paths import RESULT
from rayqd.runs.result_file import DistillResult, read_result
from tests.example_events import step_event

NO_ROWS = ExampleSet(examples=[], keys=np.empty(0, np.uint64), source="none", num_rows=0, left_out=())
PACE = Pace(tokens=500.0, seconds=2.0, fixed_seconds=60.0, accelerators=2)


def test_rounding_is_made_once_and_everything_else_once_a_seed(tmp_path: Path) -> None:
    jobs = make_jobs(tmp_path, "seeds = [0, 1]")
    assert [job.name for job in every_job(jobs)] == [
        "rtn", "gptq-seed=0", "gptq-seed=1", "off-policy-seed=0-steps=4", "mixed-seed=0-steps=4",
        "on-policy-seed=0-steps=4", "off-policy-seed=1-steps=4", "mixed-seed=1-steps=4", "on-policy-seed=1-steps=4",
    ]  # fmt: skip
    assert {job.config.seed for job in every_job(jobs) if job.seed is not None} == {0, 1}


@pytest.mark.parametrize(
    ("budget", "amount", "steps"),
    [
        ("tokens", 10_000, 20),
        ("tokens", 10_240, 20),
        ("wall-clock", 100, 20),  # 60 + 20 · 2
        ("accelerator-seconds", 200, 20),  # 2 · 100
    ],
)
def test_a_budget_is_turned_into_steps(budget: Budget, amount: float, steps: int) -> None:
    assert fit_steps("a", PACE, budget, amount) == steps
    assert abs(PACE.spent(budget, steps) - amount) <= PACE.spent(budget, 1) - PACE.spent(budget, 0)


def test_a_budget_without_room_for_a_step_is_refused_with_what_it_takes() -> None:
    with pytest.raises(ConfigError) as caught:
        fit_steps("on-policy", PACE, "accelerator-seconds", 100)
    assert str(caught.value) == (
        "compare.amount = 100: arm on-policy needs 124 accelerator-seconds for a single step, of which 120 before it; "
        "raise it to what leaves room for training"
    )


def test_accelerators_are_those_that_a_run_holds(tmp_path: Path) -> None:
    off_policy, *_, on_policy = (job.config for job in every_job(make_jobs(tmp_path, "seeds = [0]"))[2:])
    eight = ClusterSize(nodes=1, cpus=64, gpus=8, accelerators=("H200",))
    assert count_accelerators(on_policy, eight) == 3  # a worker of each role has one of its own
    assert count_accelerators(off_policy, eight) == 2
    assert count_accelerators(on_policy, replace(eight, gpus=1)) == 1  # which they share
    assert count_accelerators(on_policy, replace(eight, gpus=0)) == 1  # the machine


def test_a_second_budget_finds_what_the_first_one_left(tmp_path: Path) -> None:
    first = make_jobs(tmp_path, "seeds = [0, 1]\namount = 4")
    leave_all(first).close()
    longer = make_jobs(tmp_path, "seeds = [0, 1, 2]\namount = 8")
    assert [job.name for job in every_job(longer) if is_finished(job)] == ["rtn", "gptq-seed=0", "gptq-seed=1"]
    (tmp_path / "study.toml").write_text((tmp_path / "study.toml").read_text().replace("steps = 4", "steps = 16"))
    by_setting = Jobs(load_comparison([f"@{tmp_path}/study.toml"]))
    check_directory(by_setting, [(job, INPUTS) for job in by_setting.baselines()])
    tokens = make_jobs(tmp_path, 'seeds = [0, 1]\nbudget = "tokens"\namount = 1600')
    for pilot in tokens.pilots():
        leave_run(pilot, KL[pilot.arm.name])
    steps = steps_of_arms(tokens, tokens.pilots())  # each step of a made run has 400 tokens
    assert steps == {"off-policy": 4, "mixed": 4, "on-policy": 4}
    assert all(is_finished(job) for job in tokens.trained(steps))


def test_of_a_pilot_that_was_stopped_counts_what_came_after_its_last_start(tmp_path: Path) -> None:
    (pilot, *_) = make_jobs(tmp_path, 'budget = "wall-clock"\namount = 1000').pilots()
    leave_run(pilot, 0.1)
    before = read_result(pilot.directory / RESULT)
    assert isinstance(before, DistillResult)
    run = RunDirectory(pilot.config)
    for step in range(1, 9):  # ten seconds each; the first four were done hours before
        run.append(step_event(step, wait_seconds=4.0 if step > 4 else 94.0), 9000.0 + 10 * step if step > 4 else 100.0)
    run.finish(replace(before, seconds={"total": 95.0}, finished=9100.0))
    run.close()
    pace = read_pace(pilot)
    assert pace is not None
    assert (pace.seconds, pace.fixed_seconds) == (10.0, 95.0 - 3 * 10.0)


def test_seconds_of_another_machine_are_no_pace_for_this_one(tmp_path: Path) -> None:
    (pilot, *_) = make_jobs(tmp_path, 'budget = "wall-clock"\namount = 1000').pilots()
    leave_run(pilot, 0.1)
    machine = Machine(processor="EPYC", cores=16, memory_gib=64.0, system="Linux")
    there = Environment(versions={}, machine=machine)
    result = read_result(pilot.directory / RESULT)
    assert isinstance(result, DistillResult)
    run = RunDirectory(pilot.config)
    run.finish(replace(result, environment=there))
    run.close()
    check_pilots([pilot], there)
    with pytest.raises(RunError, match=r"was timed on 16 cores of EPYC, and this is 2 cores of EPYC: seconds "):
        check_pilots([pilot], replace(there, machine=replace(machine, cores=2)))


def test_a_run_with_other_settings_or_inputs_is_refused_with_the_difference(tmp_path: Path) -> None:
    jobs = make_jobs(tmp_path)
    leave_all(jobs).close()
    known = [(job, INPUTS) for job in every_job(jobs)]
    check_directory(jobs, known)
    with pytest.raises(RunError, match=r"gptq-seed=0 was made from something else \(model: m -> other\): give this"):
        check_directory(jobs, [(job, replace(INPUTS, model="other")) for job, _ in known[1:]])
    with pytest.raises(RunError, match=r"heldout rows: b -> c; rayqd: 0 -> 1"):
        check_directory(jobs, [(job, replace(INPUTS, heldout_rows="c", rayqd="1")) for job, _ in known])
    other = make_jobs(tmp_path, arms="off-policy = {}\non-policy = {learner.lr = 0.5}")
    with pytest.raises(RunError, match=r"on-policy-seed=0-steps=4 belongs to another configuration \(learner.lr: "):
        check_directory(other, [(job, INPUTS) for job in every_job(other)])


def test_what_all_arms_share_may_not_change(tmp_path: Path) -> None:
    jobs = make_jobs(tmp_path)
    leave_all(jobs).close()
    (tmp_path / "study.toml").write_text((tmp_path / "study.toml").read_text() + "\n[adapter]\nrank = 8\n")
    changed = Jobs(load_comparison([f"@{tmp_path}/study.toml"]))
    with pytest.raises(RunError, match=r"belongs to another configuration \(adapter.rank: 32 -> 8\)"):
        ComparisonDirectory(changed)


def test_a_checkout_that_is_not_installed_is_a_version_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_config: Any
) -> None:
    def find_nothing(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(versions, "version", find_nothing)
    assert collect_inputs(tiny_config(), NO_ROWS, NO_ROWS).rayqd == "uninstalled"


def test_code_behind_an_import_path_is_read_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_config: Any
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    file = tmp_path / "losses_of_a_comparison.py"
    file.write_text("def loss(teacher_logits, student_logits):\n    return (teacher_logits - student_logits) ** 2\n")
    config = tiny_config(distill={"loss": "losses_of_a_comparison:loss"})
    before = collect_inputs(config, NO_ROWS, NO_ROWS)
    assert collect_inputs(config, NO_ROWS, NO_ROWS) == before
    file.write_text(file.read_text().replace("** 2", "** 4"))
    after = collect_inputs(config, NO_ROWS, NO_ROWS)
    assert before.user_code != after.user_code
    assert replace(before, user_code=after.user_code) == after
    assert collect_inputs(tiny_config(), NO_ROWS, NO_ROWS).user_code == "none"


def test_a_record_from_before_user_code_was_kept_is_read_and_says_nothing_of_it(tmp_path: Path) -> None:
    jobs = make_jobs(tmp_path)
    leave_all(jobs).close()
    file = tmp_path / "study" / "inputs.json"
    known = json.loads(file.read_text())
    assert all(each.pop("user_code", "none") == INPUTS.user_code for each in known.values())
    file.write_text(json.dumps(known))
    check_directory(jobs, [(job, replace(INPUTS, user_code="new")) for job in every_job(jobs)])
    file.write_text(json.dumps({name: {**each, "user_code": "old"} for name, each in known.items()}))
    with pytest.raises(RunError, match=r"user code: old -> new"):
        check_directory(jobs, [(job, replace(INPUTS, user_code="new")) for job in every_job(jobs)])


def test_another_byte_in_the_weights_is_another_model(tmp_path: Path) -> None:
    for name, content in (("a", b"1"), ("b", b"2"), ("c", b"1")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").write_bytes(content)
        (tmp_path / name / "config.json").write_text("{}")
    a, b, c = (digest_model(tmp_path / name) for name in "abc")
    assert a == c != b


def test_the_parts_of_a_cost_add_up_also_of_a_run_that_was_stopped(tmp_path: Path) -> None:
    jobs = make_jobs(tmp_path, "seeds = [0]")
    directory = leave_all(jobs)
    job = every_job(jobs)[-1]
    outcome = read_outcome(job, directory.path, {})
    assert outcome.result is not None
    cost = cost_of_run(job, outcome.result)
    # A made run tells of 4 steps of 10 s; its last start took 24 s of work and 76 of waiting, with what else there was.
    assert cost.seconds == sum(cost.parts.values()) == 150.0
    assert EARLIER not in cost.parts
    for role, workers in (("learner", 1), ("teacher", 1), ("rollout", 1)):
        found = cost.roles[role]
        assert found.busy_seconds + found.idle_seconds == pytest.approx(workers * cost.seconds)
    assert cost.roles["rollout"].tokens == 4 * 2 * 200
    assert cost.trained_tokens == 4 * 400
    assert cost.price(3600.0) == pytest.approx(150.0)
    late = replace(outcome.result, parts={"start": 10.0, "learner": 6.0, "waiting": 4.0, "end": 5.0})
    resumed = cost_of_run(job, late)
    assert resumed.parts[EARLIER] == 30.0  # 40 s of steps, of which the last start had 10
    both = add_costs([cost, resumed])
    assert both.seconds == pytest.approx(cost.seconds + resumed.seconds)


def test_the_front_holds_what_nothing_undercuts() -> None:
    assert pareto([(3, 0.2), (1, 0.5), (2, 0.6), (4, 0.1), (5, 0.1)]) == [(1, 0.5), (3, 0.2), (4, 0.1)]
