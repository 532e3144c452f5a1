"""The versions that rollouts may lag behind: a number, or, for `auto`, what the first steps' measurements come to.

    steps    0 1 2 3 4 5 6 7 │ 8 9 ...
    bound    0 0 0 0 0 0 0 0 │ the least at which a step takes no longer than its slowest role works
             not measured ─┘ └ measured: the parts of a step lie behind each other, so each has what it computes on

Chosen once, after a whole step. The learner puts it into every later step's record, which its checkpoints hold, and a
resumed one hands it back at its start: from then on it is as if it had been set.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from statistics import median

from rayqd.config import Config
from rayqd.config.sections.rollout import MOST_STALENESS
from rayqd.events import StepEvent
from rayqd.runs.bottleneck import predict_step

_UNMEASURED = 2  # steps that the student writes for first: engines begin, and kernels are compiled
_MEASURED = 6  # steps behind those
_SLACK = 0.05  # of the slowest role's time, by which a step may be longer
_STORE_SHARE = 0.5  # of the object store, which payloads may fill


class Staleness:
    """The bound that holds, and how it comes to be."""

    def __init__(self, config: Config, *, roles_share: bool, store_bytes: float, prefetch_steps: int = 0) -> None:
        """Begin with the setting.

        `roles_share`: the roles compute on the same GPUs or cores; `store_bytes`: of the object store of the smallest
        node; `prefetch_steps`: the steps whose payloads it has to hold beside those of the steps that run ahead.
        """
        setting = config.rollout.max_staleness
        self._is_auto = setting == "auto"
        self._chosen: int | None = None
        self._first = config.rollout.first_staleness
        self._workers = {"rollout": config.rollout.num_workers, "teacher": config.num_teacher_workers}
        self._num_steps = config.learner.steps - config.first_on_policy_step  # that the student writes for
        self._roles_share = roles_share
        self._store_bytes = store_bytes
        self._prefetch_steps = prefetch_steps
        self._measured: deque[StepEvent] = deque()

    @property
    def bound(self) -> int:
        """The versions that a rollout may lag behind now."""
        return self._first if self._chosen is None else self._chosen

    @property
    def chosen(self) -> int | None:
        """What `auto` has come to; None before, and of a number."""
        return self._chosen

    def begin(self, chosen: int | None) -> str:
        """Go on from what a checkpoint says was chosen; return a line for the user where that says something."""
        if not self._is_auto:
            return ""
        self._measured.clear()
        self._chosen = chosen
        if chosen is not None:
            return f"rollout.max_staleness auto: {chosen}, as it was chosen before"
        if reason := self._why_not():
            self._chosen = 0
            return f"rollout.max_staleness auto: 0, as {reason}"
        return ""

    def add(self, step: StepEvent) -> str:
        """Take what a step's roles took; return a line for the user once that decides."""
        if not self._is_auto or self._chosen is not None or not step.roles.rollout_seconds:
            return ""
        self._measured.append(step)
        if len(self._measured) < _UNMEASURED + _MEASURED:
            return ""
        busy, step_bytes = self._typical()
        wanted = least_staleness(busy)
        self._chosen = min(wanted, self._most_that_fits(step_bytes))
        lacks = "" if self._chosen == wanted else self._describe_room(wanted, step_bytes)
        return f"{describe_choice(self._chosen, step.step + 1, busy)}{lacks}"

    def _why_not(self) -> str:
        if self._roles_share:
            return "roles share what they compute on, which is no quicker for being asked at once"
        if self._num_steps <= _UNMEASURED + _MEASURED:
            return f"the student writes for {self._num_steps} steps, too few to measure first"
        return ""

    def _typical(self) -> tuple[dict[str, float], float]:
        """Return the seconds a step of a worker of each role, and the bytes of a step's payloads."""
        steps = list(self._measured)[_UNMEASURED:]
        busy = {
            "rollout": median(step.roles.rollout_seconds for step in steps) / self._workers["rollout"],
            "teacher": median(step.roles.teacher_seconds for step in steps) / self._workers["teacher"],
            "learner": median(step.learner.learner_seconds for step in steps),
        }
        return busy, max(step.roles.payload_bytes or 0 for step in steps)

    def _most_that_fits(self, step_bytes: float) -> int:
        room = _STORE_SHARE * self._store_bytes / step_bytes if step_bytes else float("inf")
        return max(0, int(min(room, 100)) - 1 - self._prefetch_steps)

    def _describe_room(self, wanted: int, step_bytes: float) -> str:
        needs = (wanted + 1 + self._prefetch_steps) * step_bytes
        return (
            f"; {wanted} would have {needs / 1e9:.2g} GB of payloads on the way, and Ray's object store of "
            f"{self._store_bytes / 1e9:.2g} GB is to be no more than {_STORE_SHARE:.0%} full of them"
        )


def least_staleness(busy: Mapping[str, float]) -> int:
    """Return the least staleness at which the slowest role is always at work, by the seconds of each a step."""
    slowest = max(busy.values())
    enough = (k for k in range(MOST_STALENESS) if predict_step(busy, k) <= (1 + _SLACK) * slowest)
    return next(enough, MOST_STALENESS)


def describe_choice(chosen: int, step: int, busy: Mapping[str, float]) -> str:
    """Say what was chosen for the steps from `step` on, and of what measurements."""
    parts = ", ".join(f"{role} {seconds:.3g} s" for role, seconds in busy.items())
    times = ", ".join(f"{predict_step(busy, k):.3g} s at {k}" for k in range(MOST_STALENESS + 1))
    return f"rollout.max_staleness auto: {chosen} from step {step} on; {parts} make a step of {times}"
