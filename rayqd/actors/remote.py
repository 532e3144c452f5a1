"""Where plain classes become Ray actors."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, Literal

import ray

from rayqd.actors.controller import Controller
from rayqd.actors.topology import NODE_ID
from rayqd.cluster.nodes import MARKET, SPOT, Selector
from rayqd.cluster.placement import Placement
from rayqd.config import Config
from rayqd.pipeline import RolloutRef, Weights
from rayqd.rollout.worker import MakeEngine, RolloutWorker, num_top_ids, vllm_engine_maker
from rayqd.teacher.worker import TeacherWorker, teacher_loader
from rayqd.types import Example, PlannedSequence, Rollout

ANYWHERE = "DEFAULT"  # not in the placement group of a trial of Ray Tune's, which has room for its driver alone


class RolloutActor(RolloutWorker):
    """Returns a summary and then every rollout as an object of its own, so that each travels only to who needs it."""

    def __repr__(self) -> str:
        """Logs and Ray's dashboard keep what it is after __init__, without a version; errors have the newest."""
        return f"RolloutWorker({_actor_label()}{f', version={self._version}' if self._version >= 0 else ''})"

    def write(self, sequences: Sequence[PlannedSequence], prompts: Sequence[Example], weights: Weights) -> Any:
        seconds, rollouts = super().write(sequences, prompts, weights)
        return (seconds, [_summary(r) for r in rollouts]), *rollouts

    def process(self) -> tuple[str, int]:
        """Node and process id."""
        return ray.get_runtime_context().get_node_id(), os.getpid()


class TeacherActor(TeacherWorker):
    """Returns what it did and then every rollout's scores as an object of its own."""

    def __repr__(self) -> str:
        return f"TeacherWorker({_actor_label()})"

    def score(self, *rollouts: Rollout) -> Any:
        report, scores = super().score(*rollouts)
        return report, *scores

    def hidden(self, *rollouts: Rollout) -> Any:
        report, scores = super().hidden(*rollouts)
        return report, *scores


def start_rollouts(config: Config, placement: Placement, make_engine: MakeEngine | None = None) -> list[Any]:
    """Start the rollout workers; none when nothing is on-policy. Each begins to build its engine at once."""
    if not config.is_on_policy:
        return []
    make_engine = make_engine or vllm_engine_maker(config, placement.gpus_per_worker["rollout"] or 1.0)
    return [
        actor.remote(rank, config.rollout, make_engine, ray.get, num_top_ids(config))
        for rank, actor in enumerate(_actor_classes("rollout", RolloutActor, config, placement))
    ]


def start_generation_workers(config: Config, placement: Placement, make_engine: MakeEngine) -> list[Any]:
    """Start rollout workers without a student, over as many nodes as there are."""
    actors = _actor_classes("rollout", RolloutActor, config, placement, name="generator", strategy="SPREAD")
    return [actor.remote(rank, config.rollout, make_engine, ray.get) for rank, actor in enumerate(actors)]


def start_teachers(config: Config, placement: Placement) -> list[Any]:
    """Start the teachers."""
    return [
        actor.remote(rank, teacher_loader(config))
        for rank, actor in enumerate(_actor_classes("teacher", TeacherActor, config, placement))
    ]


def start_controller(config: Config, node_id: str, rollouts: list[Any], teachers: list[Any]) -> Any:
    """Start the controller beside the driver; it asks for no CPU, so Ray might put it on a spot node."""
    actor: Any = ray.remote(Controller)
    return actor.options(
        name=f"rayqd/{config.name}/controller",
        num_cpus=0,
        max_concurrency=1000,
        label_selector={NODE_ID: node_id},
        scheduling_strategy=ANYWHERE,
    ).remote(config, rollouts, teachers)


def _actor_label() -> str:
    """Return run, role and rank of the actor that this is called in: `mine/rollout-0`."""
    return str(ray.get_runtime_context().get_actor_name()).removeprefix("rayqd/")


def _actor_classes(
    role: str,
    cls: type,
    config: Config,
    placement: Placement,
    *,
    name: str = "",
    strategy: Literal["DEFAULT", "SPREAD"] = ANYWHERE,
) -> list[Any]:
    """Return the actor class once for each worker, with its name (by role, unless given), share and node."""
    actor: Any = ray.remote(
        num_cpus=placement.cpus_per_worker,
        num_gpus=placement.gpus_per_worker[role],
        max_restarts=-1,
        max_task_retries=0,
        runtime_env={"env_vars": placement.env_vars},
        scheduling_strategy=strategy,
    )(cls)
    return [
        actor.options(
            name=f"rayqd/{config.name}/{name or role}-{rank}",
            label_selector=selector,
            fallback_strategy=_fallback_strategy(selector) if placement.spot_is_optional else None,
        )
        for rank, selector in enumerate(placement.selectors[role][: getattr(config, role).num_workers])
    ]


def _fallback_strategy(selector: Selector) -> list[dict[str, Selector]] | None:
    return [{"label_selector": selector | {MARKET: f"!{SPOT}"}}] if selector.get(MARKET) == SPOT else None


def _summary(rollout: Rollout) -> RolloutRef:
    return RolloutRef(
        step=rollout.step,
        index=rollout.index,
        num_tokens=rollout.num_tokens,
        num_loss_tokens=rollout.num_loss_tokens,
        policy_version=rollout.policy_version,
        rollout=None,
    )
