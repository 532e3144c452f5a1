"""When asha compares trials, and how many trials a cluster holds."""

import pytest

from rayqd.actors.connection import Cluster
from rayqd.cluster.nodes import NodeGroup, Nodes
from rayqd.config import Config
from rayqd.config.sections.sweep import SweepConfig
from rayqd.errors import ConfigError, PlacementError
from rayqd.sweep.concurrency import choose_concurrency, combine_trials, place_concurrent_trials
from rayqd.sweep.halving import Halving, eval_interval, make_halving
from rayqd.sweep.trials import Evaluation, Outcome, Trial
from rayqd.sweep.tuner import replay_ended


def config(steps: int, **sections) -> Config:
    return Config.model_validate({"learner": {"steps": steps}, **sections})


@pytest.mark.parametrize(
    ("steps", "grace", "factor", "rungs"),
    [
        (54, 6, 3, [6, 18]),
        (50, 6, 3, [6, 18]),
        (8, 2, 2, [2, 4]),
        (9, 3, 3, [3]),
        (100, 99, 2, [99]),
        (16, 1, 4, [1, 4]),
    ],
)
def test_the_rungs_are_those_of_ray_tunes_scheduler(steps, grace, factor, rungs):
    halving = Halving(grace_steps=grace, reduction_factor=factor, num_steps=steps)
    assert halving.rungs == rungs
    bracket = halving.scheduler("kl_to_teacher")._brackets[0]
    milestones = sorted(milestone for milestone, _ in bracket._rungs)
    assert [m for m in milestones if m < steps] == rungs  # one at the very end stops nobody


def test_without_eval_every_trials_are_looked_at_where_asha_compares_them():
    asha = SweepConfig(scheduler="asha")
    assert make_halving(asha, config(54)).grace_steps == 6  # 54 / 3²
    assert eval_interval(asha, config(54)) == 6
    assert eval_interval(SweepConfig(scheduler="asha", grace_steps=10), config(54)) == 10
    assert eval_interval(asha, config(54, eval={"every": 4})) == 4
    assert eval_interval(SweepConfig(), config(54)) == 0
    assert make_halving(SweepConfig(), config(54)) is None


@pytest.mark.parametrize(
    ("sweep", "run", "message"),
    [
        (
            SweepConfig(scheduler="asha"),
            config(54, eval={"every": 0}),
            "eval.every=0: asha compares trials while they train",
        ),
        (SweepConfig(scheduler="asha"), config(54, eval={"every": 54}), "evaluate every 1 to 53 steps"),
        (
            SweepConfig(scheduler="asha", grace_steps=54),
            config(54),
            "sweep.grace_steps=54: must be below learner.steps=54",
        ),
        (SweepConfig(scheduler="asha"), config(1), "sweep.grace_steps=1: must be below learner.steps=1"),
    ],
)
def test_an_asha_that_could_stop_nobody_is_refused(sweep, run, message):
    with pytest.raises(ConfigError, match=message):
        make_halving(sweep, run)


def outcome(number: int, *curve: tuple[int, float]) -> Outcome:
    return Outcome(
        trial=Trial(number=number, settings={}),
        state="finished",
        curve=tuple(Evaluation(step=step, kl_to_teacher=kl, perplexity=1.0) for step, kl in curve),
        seconds={},
        teacher_seconds=0.0,
        cache_hits=0,
        cache_misses=0,
        error=None,
    )


def test_a_resumed_scheduler_stops_what_the_first_one_would_have_stopped():
    class Running:
        trial_id = "new"

    scheduler = Halving(grace_steps=2, reduction_factor=2, num_steps=8).scheduler("kl_to_teacher")
    replay_ended(scheduler, [outcome(1, (0, 9.0), (2, 0.5), (4, 0.4)), outcome(2, (0, 9.0), (2, 0.3))])
    scheduler.on_trial_add(None, Running)
    # The better half of 0.5 and 0.3 goes on: the cut is at their median, 0.4.
    assert scheduler.on_trial_result(None, Running, {"step": 2, "kl_to_teacher": 0.41}) == "STOP"
    scheduler.on_trial_add(None, Running)
    Running.trial_id = "newer"
    scheduler.on_trial_add(None, Running)
    assert scheduler.on_trial_result(None, Running, {"step": 2, "kl_to_teacher": 0.29}) == "CONTINUE"


def cluster(cpus: float, gpus: int = 0) -> Cluster:
    node = NodeGroup(name="here", cpus=cpus, gpus=gpus, labels={}, running=1, startable=0)
    return Cluster(nodes=Nodes(groups=(node,)), node_id="here", accelerators=(), dashboard="", log_dir=None)


OFF_POLICY = config(4, distill={"lmbda": 0.0})  # a teacher and a learner
ON_POLICY = config(4, distill={"lmbda": 1.0})  # and a rollout worker


@pytest.mark.parametrize(
    ("run", "where", "wanted", "fitting"),
    [
        (OFF_POLICY, cluster(2), 8, 1),  # 2 learners and the teacher that they share are 3
        (OFF_POLICY, cluster(3), 8, 2),
        (ON_POLICY, cluster(64, gpus=8), 16, 3),  # 3 · (rollout + learner) + 1 teacher
        (ON_POLICY, cluster(64, gpus=1), 16, 1),
        (ON_POLICY, cluster(64, gpus=8), 2, 2),
    ],
)
def test_as_many_trials_as_have_a_gpu_or_a_cpu_for_each_worker(run, where, wanted, fitting):
    assert choose_concurrency([run], where.nodes, wanted) == fitting


@pytest.mark.parametrize("where", [cluster(2), cluster(16), cluster(64, gpus=8)])
def test_trials_side_by_side_never_ask_for_more_than_there_is(where):
    large = config(4, distill={"lmbda": 0.5}, learner={"steps": 4, "num_workers": 2}, rollout={"num_workers": 2})
    placement = place_concurrent_trials([OFF_POLICY, large], 3, where.nodes)
    workers = {"learner": 3 * 2, "rollout": 3 * 2, "teacher": 1}
    assert sum(workers.values()) * placement.cpus_per_worker <= where.nodes.cpus
    assert sum(count * placement.gpus_per_worker[role] for role, count in workers.items()) <= where.nodes.gpus + 1e-9


def test_trials_of_one_learner_worker_share_a_gpu_and_those_of_two_do_not():
    """The workers of one trial talk to each other, which NCCL refuses on one GPU; those of two trials do not."""
    one = place_concurrent_trials([ON_POLICY], 2, cluster(16, gpus=1).nodes)
    assert one.gpus_per_worker["learner"] == one.gpus_per_worker["rollout"] == 1 / 5
    with pytest.raises(PlacementError, match="share no GPU"):
        place_concurrent_trials([config(4, learner={"steps": 4, "num_workers": 2})], 2, cluster(16, gpus=2).nodes)


def test_trials_with_teachers_of_their_own_are_given_room_for_as_many_as_run_at_once():
    trials = [config(4, model={"name": name}) for name in ("a", "b", "c")]
    assert combine_trials(trials, 2).teacher.num_workers == 2
    assert combine_trials(trials, 5).teacher.num_workers == 3
    assert combine_trials([ON_POLICY, OFF_POLICY], 5).teacher.num_workers == 1
