"""Benchmarks of the student that is being trained, run where `eval.where` says."""

from __future__ import annotations

from rayqd.config import Config
from rayqd.evals.language_model import TransformersModel
from rayqd.evals.while_training import TrainingBenchmarks
from rayqd.events import NoticeEvent, StatusEvent
from rayqd.learner.feed import Feed
from rayqd.learner.learner import Learner
from rayqd.learner.rollout_weights import collect_rollout_weights
from rayqd.metrics.fidelity import TaskResults
from rayqd.runs.metrics_file import read_metrics
from rayqd.spans import span
from rayqd.stall import NoWatch, Watch

_ROUNDS = (
    "benchmarks: memory has no room for the values of all codes, so that the student rounds its weights anew for every "
    "batch: slower, the same scores; eval.where=rollout leaves it to an engine"
)


def lack_benchmarks(step: int, config: Config) -> bool:
    """Return whether benchmarks are due after `step` steps, and the run's metrics, if they are here, lack them."""
    if not config.runs_tasks(step):
        return False
    rows = read_metrics(config.run_dir)
    return not any(row.get("event") == "eval" and row.get("step") == step for row in rows)


class StudentBenchmarks:
    """Runs `eval.tasks` on the weights as they are exported; of all workers that join collectives."""

    def __init__(self, config: Config, learner: Learner, feed: Feed, watch: Watch | None = None) -> None:
        """`watch` watches over what runs in this process."""
        self._watch = watch or NoWatch()
        self._config = config
        self._learner = learner
        self._feed = feed
        self._has_told = False
        self._own: TrainingBenchmarks | None = None  # opened when first needed

    def run(self, step: int) -> TaskResults:
        """Return what the student scores after `step` steps, without what is left out, which is told.

        Collective where the student is sharded; empty on other workers than rank 0 where a rollout worker answers.
        """
        if not self._config.runs_tasks(step):
            return TaskResults()
        self._feed.report(StatusEvent(text=f"benchmarks after step {step}"))
        with span("benchmarks"):
            results = self._ask_engine(step) if self._config.eval.where == "rollout" else self._ask_student(step)
        for remark in results.remarks:
            self._feed.report(NoticeEvent(text=remark))
        return results

    def _ask_student(self, step: int) -> TaskResults:
        student = self._learner.student
        self._own = self._own or TrainingBenchmarks(self._config, joined_by_others=self._learner.group.is_sharded)
        model = TransformersModel(student.model, self._own.tokenizer, self._watch)
        with student.as_exported(), student.with_plain_layers() as is_plain:
            if not is_plain and not self._has_told:
                self._has_told = True
                self._feed.report(NoticeEvent(text=_ROUNDS))
            with self._watch.computing():
                return self._own.run(model, f"after step {step}")

    def _ask_engine(self, step: int) -> TaskResults:
        return self._feed.run_tasks(step, collect_rollout_weights(self._learner.student, self._config))
