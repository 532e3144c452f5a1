"""Where the controller hears what roles take: what `auto` comes to holds for the pipeline, the learner and the user."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from rayqd.actors.controller import Controller
from rayqd.actors.staleness import Staleness
from rayqd.config import Config
from rayqd.events import NoticeEvent, StartEvent, StepEvent
from tests.example_events import LEARNER
from tests.pipeline.recorded import make


def controller(**given: Any) -> tuple[Any, Any]:
    """A controller without workers, and its pipeline of recorded roles."""
    config = Config.model_validate({"rollout": {"max_staleness": "auto"}, "distill": {"lmbda": 1.0}})
    staleness = Staleness(config, **{"roles_share": False, "store_bytes": 1e9} | given)
    made: Any = Controller(config, [], [], 0, staleness)
    made._pipeline, _ = make(lmbda=1.0)
    made._has_data.set()
    return made, made._pipeline


async def take(made: Any, step: int) -> None:
    """The learner reports a step, for which rollouts and teacher have worked."""
    made._rollout_clock.add(step - 1, 3.0, 100)
    made._teacher_clock.add(step - 1, 1.0, 100)
    made._cache.num_bytes[step - 1] = 1000
    await made.report(replace(LEARNER, step=step, learner_seconds=2.5))


async def notices(made: Any) -> list[str]:
    return [each.event.text for each in await made.events(0, 1.0) if isinstance(each.event, NoticeEvent)]


async def test_once_measured_it_holds_from_the_next_step_on_and_is_told() -> None:
    made, pipeline = controller()
    await made.report(StartEvent(step=0))
    for step in range(1, 8):
        await take(made, step)
    assert (pipeline._max_staleness, await made.notes(7)) == (0, ((), None))
    await take(made, 8)
    assert (pipeline._max_staleness, await made.notes(8)) == (2, ((), 2))
    assert await notices(made) == [
        "rollout.max_staleness auto: 2 from step 9 on; rollout 3 s, teacher 1 s, learner 2.5 s make a step of 6.5 s at "
        "0, 3.25 s at 1, 3 s at 2"
    ]
    steps = [each.event for each in await made.events(0, 1.0) if isinstance(each.event, StepEvent)]
    assert [step.roles.payload_bytes for step in steps] == [1000] * 8


async def test_what_a_checkpoint_says_holds_at_once_and_a_controller_that_goes_on_forgets_what_came_after() -> None:
    made, pipeline = controller()
    await made.report(StartEvent(step=40, max_staleness=2))
    assert (pipeline._max_staleness, await made.notes(40)) == (2, ((), 2))
    await made.report(StartEvent(step=4))  # a learner that is back at a checkpoint of before
    assert (pipeline._max_staleness, await made.notes(4)) == (0, ((), None))


async def test_roles_that_share_what_they_compute_on_take_turns() -> None:
    made, pipeline = controller(roles_share=True)
    await made.report(StartEvent(step=0))
    assert (pipeline._max_staleness, await made.notes(0)) == (0, ((), 0))
    assert len(await notices(made)) == 1
