"""What a model scores on benchmarks, document by document where there are documents; kept as JSON."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskScore:
    """One metric of one task, after one of its filters (how the answer is read from what was generated)."""

    task: str
    metric: str
    filter: str  # "none" where there is no choice
    value: float
    stderr: float | None  # lm-eval's, of this model alone; None where it has none
    higher_is_better: bool
    document_ids: tuple[int, ...]
    document_values: tuple[Any, ...]  # numbers; lists of them for metrics that are no means


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupScore:
    """One metric of a group of tasks: Σ weight·score."""

    task: str  # the group's name
    metric: str
    filter: str
    value: float
    stderr: float | None
    parts: tuple[str, ...]  # names of the tasks
    weights: tuple[float, ...]  # theirs, sum 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Scores:
    """Of one model on one benchmark."""

    tasks: tuple[TaskScore, ...]
    groups: tuple[GroupScore, ...]
    num_answers: int = 0  # that it wrote in its own words
    num_cut: int = 0  # of those, that the task's limit of tokens ended before they came to an end
    num_shortened: int = 0  # questions that lost their beginning, as an engine takes no more tokens
    num_windowed: int = 0  # texts of which an engine reads no more than a window at a time
    window: int = 0  # its tokens

    def find(self, task: str, metric: str, filtered: str) -> TaskScore:
        """Return the score of a task's metric after a filter. Raises KeyError where there is none."""
        for score in self.tasks:
            if (score.task, score.metric, score.filter) == (task, metric, filtered):
                return score
        raise KeyError((task, metric, filtered))

    def to_json(self) -> dict[str, object]:
        """Return what `from_json` reads back."""
        return asdict(self)

    @classmethod
    def from_json(cls, fields: Any) -> Scores:
        """Read what `to_json` returned. Raises KeyError or TypeError where `fields` are something else."""
        tasks = [{key: _freeze(value) for key, value in score.items()} for score in fields["tasks"]]
        groups = [{key: _freeze(value) for key, value in score.items()} for score in fields["groups"]]
        return cls(
            tasks=tuple(TaskScore(**t) for t in tasks),
            groups=tuple(GroupScore(**g) for g in groups),
            num_answers=fields["num_answers"],
            num_cut=fields["num_cut"],
            **{
                name: fields.get(name, 0) for name in ("num_shortened", "num_windowed", "window")
            },  # not counted at first
        )


def _freeze(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
