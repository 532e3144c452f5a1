"""The recipe study: arms of one TOML file, each trained and measured in this process, without Ray and off-policy.

    python tune/recipes.py ARMS.toml DATA_DIR OUT_DIR [--only NAME,NAME] [--part I/N]

DATA_DIR is what tune/recipe_data.py wrote. The teacher runs once over all training rows; every arm reuses its hidden
states. OUT_DIR/results.jsonl gets a line an arm, seed and evaluation, and what stands there is not run again. Several
processes may share a GPU: part I of N takes every Nth run.
"""

from __future__ import annotations

import argparse
import json
import shlex
import time
import tomllib
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from recipe_rows import calibration_rows, load_rows, training_plan

from rayqd.config import Config
from rayqd.config.load import load_config
from rayqd.driver.dtype import with_concrete_dtype
from rayqd.evals.fidelity import student_fidelity
from rayqd.learner.learner import Learner
from rayqd.model.calibration import calibrate
from rayqd.model.load import load_model, output_head, torch_dtype
from rayqd.model.source import local_directory
from rayqd.model.student import Student
from rayqd.quant import make_grid
from rayqd.teacher.forward import Teacher
from rayqd.types import Example, HiddenPayload, Rollout, ScoredRollout

if TYPE_CHECKING:
    from transformers import PreTrainedModel

HELDOUT = ("gsm8k", "wikitext")


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """An arm with one of its seeds."""

    arm: str
    seed: int
    config: Config
    method: str | None  # a baseline without training: one of quant.method
    eval_every: int


class Study:
    """Model, data and teacher states, which all runs share."""

    def __init__(self, config: Config, data: Path) -> None:
        self.directory = local_directory(config.model.name)
        model = load_model(self.directory, config.model.dtype)
        self.teacher = Teacher(model, config.teacher.max_batch_tokens)
        self.teacher_head = output_head(model)

        def rows(name: str) -> list[Example]:
            return load_rows(config, data / f"{name}.jsonl", self.directory)

        self.training = rows("train")
        self.heldout = {name: _scored(rows(name), self.teacher) for name in HELDOUT}
        self._calibrated: dict[str, dict[str, torch.Tensor]] = {}

    @cached_property
    def payloads(self) -> list[HiddenPayload]:
        """The teacher's hidden states of all training rows."""
        return self.teacher.hidden([_rollout(e, 0, i) for i, e in enumerate(self.training)])

    def student(self, config: Config, method: str) -> Student:
        """Return the untrained student, calibrated by `method`; each calibration is made once."""
        torch.manual_seed(config.seed)
        model = load_model(self.directory, config.model.dtype)
        if method != "rtn":
            key = f"{method} {config.quant.model_dump()}"
            if key not in self._calibrated:
                grid = make_grid(config.quant, torch_dtype(config.model.dtype))
                sequences = calibration_rows(config, self.training)
                calibrate(model, config.quant, grid, sequences, method=method, max_batch_tokens=16384)
                self._calibrated[key] = {n: t.detach().cpu().clone() for n, t in model.state_dict().items()}
            model.load_state_dict(self._calibrated[key])
        return Student(model, config)

    def measure(self, student: Student) -> dict[str, dict[str, float]]:
        """Return the student's fidelity, as exported, on each held-out set."""
        with student.as_exported():
            return self.measure_model(student.model)

    def measure_model(self, model: PreTrainedModel) -> dict[str, dict[str, float]]:
        """Return the fidelity of a model that computes as it stands, on each held-out set."""
        head, teacher_head = output_head(model), self.teacher_head
        return {
            name: asdict(student_fidelity(model, head, teacher_head, rows, 16384))
            for name, rows in self.heldout.items()
        }

    def batch(self, config: Config, step: int) -> list[ScoredRollout]:
        """Return the rows that a step trains on, with the teacher's hidden states."""
        plan = training_plan(config, len(self.training)).step(step)
        return [
            ScoredRollout(rollout=_rollout(self.training[s.example], step, s.index), payload=self.payloads[s.example])
            for s in plan
        ]


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """An evaluation of a run; the last is its result."""

    step: int
    fidelity: dict[str, dict[str, float]]  # by held-out set
    training: dict[str, float] = field(default_factory=dict)  # num_tokens, seconds and loss, of an arm that trains


def train(study: Study, run: Run) -> Iterator[Record]:
    """Train an arm, and yield a record at each evaluation."""
    config = run.config
    if run.method is not None:
        yield Record(step=0, fidelity=study.measure(study.student(config, run.method)))
        return
    student = study.student(config, config.quant.init)
    learner = Learner(student, study.teacher_head, config)
    _ = study.payloads  # made once for all arms: not in the seconds of the first
    num_tokens, began = 0, time.perf_counter()
    for step in range(config.learner.steps):
        batch = study.batch(config, step)
        num_tokens += sum(s.rollout.num_tokens for s in batch)
        result = learner.step(step, batch, sum(s.rollout.num_loss_tokens for s in batch))
        done = step + 1
        if done == config.learner.steps or (run.eval_every and done % run.eval_every == 0):
            seconds = time.perf_counter() - began
            training = {"num_tokens": num_tokens, "seconds": seconds, "loss": result.loss}
            yield Record(step=done, training=training, fidelity=study.measure(student))


def read_runs(path: Path) -> list[Run]:
    """Return the runs of an arms file, an arm's seeds one after the other."""
    tables = tomllib.loads(path.read_text())
    runs: list[Run] = []
    for name, arm in tables["arm"].items():
        for seed in range(arm.get("seeds", 1)):
            asked = load_config(shlex.split(f"{tables['base']} {arm.get('flags', '')} --seed {seed}"))
            config = with_concrete_dtype(asked)
            runs.append(
                Run(arm=name, seed=seed, config=config, method=arm.get("method"), eval_every=arm.get("eval_every", 0))
            )
    return runs


def _rollout(example: Example, step: int, index: int) -> Rollout:
    return Rollout.from_data(example, step=step, index=index)


def _scored(examples: list[Example], teacher: Teacher) -> list[ScoredRollout]:
    rollouts = [_rollout(example, -1, i) for i, example in enumerate(examples)]
    return [ScoredRollout(rollout=r, payload=p) for r, p in zip(rollouts, teacher.hidden(rollouts), strict=True)]


def main() -> None:
    """Read the command line, and run what has not finished."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("arms", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--only", help="names of arms, with commas")
    parser.add_argument("--part", default="1/1", help="I/N: every Nth run, from the Ith")
    options = parser.parse_args()

    runs = read_runs(options.arms)
    if options.only:
        runs = [run for run in runs if run.arm in options.only.split(",")]
    part, num_parts = (int(number) for number in options.part.split("/"))
    runs = runs[part - 1 :: num_parts]
    options.out.mkdir(parents=True, exist_ok=True)
    results = options.out / "results.jsonl"
    known = [json.loads(line) for line in results.read_text().splitlines()] if results.exists() else []
    finished = {(record["arm"], record["seed"]) for record in known if record["finished"]}
    study = Study(runs[0].config, options.data)
    for run in runs:
        if (run.arm, run.seed) in finished:
            continue
        began = time.perf_counter()
        for record in train(study, run):
            last = record.step == (0 if run.method else run.config.learner.steps)
            line = {"arm": run.arm, "seed": run.seed, "finished": last, "step": record.step}
            line |= record.training | record.fidelity
            with results.open("a") as file:
                file.write(json.dumps(line) + "\n")
            kl = "  ".join(f"{name} {record.fidelity[name]['kl_to_teacher']:.4f}" for name in HELDOUT)
            seconds = time.perf_counter() - began
            print(f"{run.arm} seed {run.seed} step {record.step}: {kl}  {seconds:.0f} s", flush=True)


if __name__ == "__main__":
    main()
