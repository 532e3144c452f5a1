"""What the evaluations during training came to: which weights were the best, and when nothing more is gained.

Both follow from the values alone, which every checkpoint holds: a resumed run decides as an undisturbed one.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path

from rayqd.config import Config
from rayqd.metrics.catalogue import metric
from rayqd.metrics.fidelity import Fidelity
from rayqd.runs.paths import EVALUATIONS

_BY_DEFAULT = "kl_to_teacher"  # what eval.patience looks at where checkpoint.best is none


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What the metric was after `step` optimizer steps."""

    step: int
    value: float


class Evaluations:
    """The values of `checkpoint.best` in their order; of the KL where only `eval.patience` is set."""

    def __init__(self, config: Config) -> None:
        self.metric = config.checkpoint.best or _BY_DEFAULT
        self.keep_best = config.checkpoint.best is not None  # the weights
        self.decide = config.tracks_evaluations  # what is exported, or when training ends
        self._is_task = config.best_is_task
        # Of a benchmark the first value says which way is better.
        self._sign = -1.0 if self._is_task or metric(self.metric).better == "higher" else 1.0
        self._is_measured = config.runs_tasks if self._is_task else _always
        self._patience, self._min_delta = config.eval.patience, config.eval.min_delta
        self._values: list[Evaluation] = []

    def add(self, step: int, fidelity: Fidelity) -> bool:
        """Add what was measured after `step`; return whether no weights before were as good.

        An evaluation without benchmarks says nothing where one of those decides.
        """
        is_best = self.would_be_best(fidelity)
        if not self._is_measured(step):
            return False
        self._values.append(Evaluation(step=step, value=self._value(fidelity)))
        return is_best

    def would_be_best(self, fidelity: Fidelity) -> bool:
        """Return whether no weights before were as good as those of which this was measured."""
        best, value = self.best, self._value(fidelity)
        return not math.isnan(value) and (best is None or self._sign * value < self._sign * best.value)

    def _value(self, fidelity: Fidelity) -> float:
        if self._is_task:
            found = fidelity.find_task(self.metric)
            if found is None:
                return math.nan
            self._sign = -1.0 if found.higher_is_better else 1.0
            return found.value
        value = getattr(fidelity, self.metric)
        return math.nan if value is None else float(value)

    def lack(self, step: int) -> bool:
        """Return whether nothing was measured after `step`, of what decides something."""
        return self.decide and self._is_measured(step) and all(each.step != step for each in self._values)

    @property
    def last_step(self) -> int:
        """Return the step of the newest value; 0 where there is none."""
        return self._values[-1].step if self._values else 0

    @property
    def best(self) -> Evaluation | None:
        """Return the best of all values, the first one of several; None where there is none that is a number."""
        numbers = [each for each in self._values if not math.isnan(each.value)]
        return min(numbers, key=lambda each: self._sign * each.value, default=None)

    @property
    def reason_to_end(self) -> str | None:
        """Return why training should end: so many evaluations, and none better by more than `eval.min_delta`."""
        if not self._patience:
            return None
        reference, num_since = Evaluation(step=0, value=math.nan), 0
        for each in self._values:
            if math.isnan(reference.value) or self._sign * (reference.value - each.value) > self._min_delta:
                reference, num_since = each, 0
            else:
                num_since += 1
        if num_since < self._patience:
            return None
        beyond = f" by more than {self._min_delta:g}" if self._min_delta else ""
        evaluations = "evaluation" if num_since == 1 else "evaluations"
        return f"{self.metric} was not better{beyond} in {num_since} {evaluations} than after step {reference.step}"

    def forget(self) -> None:
        """Begin anew."""
        self._values.clear()

    def to_text(self) -> str:
        """Return the values as a checkpoint keeps them; empty where nothing is decided by them."""
        if not self.decide:
            return ""
        values = [asdict(each) for each in self._values]
        better = "higher" if self._sign < 0 else "lower"
        return json.dumps({"metric": self.metric, "better": better, "values": values}) + "\n"

    def load(self, checkpoint: Path) -> None:
        """Take over what a checkpoint has, if it is of the same metric."""
        self._values.clear()
        file = checkpoint / EVALUATIONS
        if self.decide and file.is_file():  # whole, as the checkpoint is
            content = json.loads(file.read_text(encoding="utf-8"))
            if content["metric"] == self.metric:
                self._values += [Evaluation(**each) for each in content["values"]]
                if self._is_task:
                    self._sign = -1.0 if content["better"] == "higher" else 1.0


def _always(step: int) -> bool:
    return True
