"""Where plain classes become Ray actors."""

from __future__ import annotations

from typing import Literal, TypeVar

import ray
from ray.actor import ActorClass

from rayqd.actors.controller import Controller, ControllerHandle
from rayqd.actors.ray_types import fetch
from rayqd.actors.staleness import Staleness
from rayqd.actors.topology import NODE_ID, smallest_object_store
from rayqd.actors.workers import PooledActor, RolloutActor, RolloutHandle, TeacherActor, TeacherHandle
from rayqd.cluster.nodes import MARKET, SPOT, Selector
from rayqd.cluster.placement import Placement
from rayqd.config import Config
from rayqd.rollout.engine_makers import import_engine, vllm_engine_maker
from rayqd.rollout.tasks import EngineTasks
from rayqd.rollout.worker import MakeEngine, RolloutWorker, num_top_ids
from rayqd.teacher.worker import TeacherWorker, import_teacher, teacher_loader

A = TypeVar("A", bound=PooledActor)

_PREFETCH_STEPS = 2  # one hides a teacher that is the quicker, the second a step that is longer than the others
ANYWHERE = "DEFAULT"  # not in the placement group of a trial of Ray Tune's, which has room for its driver alone


def start_rollouts(config: Config, placement: Placement, make_engine: MakeEngine | None = None) -> list[RolloutHandle]:
    """Start the rollout workers; none when nothing is on-policy. They make no engine yet."""
    if not config.is_on_policy:
        return []
    prepare = None if make_engine else import_engine
    make_engine = make_engine or vllm_engine_maker(config, placement.gpus_per_worker["rollout"] or 1.0)
    tasks = EngineTasks(config) if config.eval.where == "rollout" and config.eval.steps_between_tasks else None
    return [
        actor.remote(
            RolloutWorker(rank, make_engine, fetch, num_top_ids(config), config.ray.stall_seconds, prepare, tasks)
        )
        for rank, actor in enumerate(_actor_classes("rollout", RolloutActor, config, placement))
    ]


def start_generation_workers(config: Config, placement: Placement, make_engine: MakeEngine) -> list[RolloutHandle]:
    """Start rollout workers without a student, over as many nodes as there are."""
    actors = _actor_classes("rollout", RolloutActor, config, placement, name="generator", strategy="SPREAD")
    return [
        actor.remote(RolloutWorker(rank, make_engine, fetch, stall_seconds=config.ray.stall_seconds))
        for rank, actor in enumerate(actors)
    ]


def start_teachers(config: Config, placement: Placement) -> list[TeacherHandle]:
    """Start the actors of all teachers, those of the first before those of the second. They load no model yet."""
    gpu_share = placement.gpus_per_worker["teacher"] or 1.0
    handles: list[TeacherHandle] = []
    for rank, actor in enumerate(_actor_classes("teacher", TeacherActor, config, placement)):
        teacher = rank // config.teacher.num_workers
        load = teacher_loader(config, gpu_share, teacher)
        handles.append(actor.remote(TeacherWorker(rank, load, config.ray.stall_seconds, import_teacher, teacher)))
    return handles


def start_controller(
    config: Config, node_id: str, rollouts: list[RolloutHandle], teachers: list[TeacherHandle], placement: Placement
) -> ControllerHandle:
    """Start the controller beside the driver; it asks for no CPU, so Ray might put it on a spot node."""
    prefetch_steps = count_prefetched(config, placement)
    return (
        ray.remote(Controller)
        .options(
            name=f"rayqd/{config.name}/controller",
            num_cpus=0,
            max_concurrency=1000,
            label_selector={NODE_ID: node_id},
            scheduling_strategy=ANYWHERE,
        )
        .remote(config, rollouts, teachers, prefetch_steps, _staleness(config, placement, prefetch_steps))
    )


def _staleness(config: Config, placement: Placement, prefetch_steps: int) -> Staleness:
    return Staleness(
        config,
        roles_share=min(placement.gpus_per_worker.values()) < 1,
        store_bytes=smallest_object_store(),
        prefetch_steps=prefetch_steps,
    )


def count_prefetched(config: Config, placement: Placement) -> int:
    """Return how many steps further ahead the teachers score what the data gives."""
    if config.teacher.prefetch_steps is not None:
        return config.teacher.prefetch_steps
    has_room = config.teacher.payload != "logits"  # of which a step may be tens of gigabytes
    return _PREFETCH_STEPS if placement.gpus_per_worker["teacher"] and has_room else 0


def _actor_classes(
    role: str,
    cls: type[A],
    config: Config,
    placement: Placement,
    *,
    name: str = "",
    strategy: Literal["DEFAULT", "SPREAD"] = ANYWHERE,
) -> list[ActorClass[A]]:
    """Return the actor class once for each worker, with its name (by role, unless given), share and node."""
    actor: ActorClass[A] = ray.remote(
        num_cpus=placement.cpus_per_worker,
        num_gpus=placement.gpus_per_worker[role],
        max_restarts=-1,
        max_task_retries=0,
        runtime_env={"env_vars": placement.env_vars},
        scheduling_strategy=strategy,
    )(cls)
    count = config.num_teacher_workers if role == "teacher" else getattr(config, role).num_workers
    return [
        actor.options(
            name=f"rayqd/{config.name}/{name or role}-{rank}",
            label_selector=selector,
            fallback_strategy=_fallback_strategy(selector) if placement.spot_is_optional else None,
        )
        for rank, selector in enumerate(placement.selectors[role][:count])
    ]


def _fallback_strategy(selector: Selector) -> list[dict[str, Selector]] | None:
    return [{"label_selector": selector | {MARKET: f"!{SPOT}"}}] if selector.get(MARKET) == SPOT else None
