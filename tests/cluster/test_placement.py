"""Who lands where. The expected places are worked out by hand, beside each test."""

from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ray._private.label_utils import validate_label_selector

from rayqd.cluster.nodes import MARKET, NodeGroup, Nodes
from rayqd.cluster.placement import Placement, num_workers, place
from rayqd.config import Config
from rayqd.errors import PlacementError


def group(
    name: str, cpus: float = 8, gpus: int = 0, *, market: str = "", running: int = 1, startable: int = 0, **labels: str
) -> NodeGroup:
    marked = {MARKET: market} if market else {}
    return NodeGroup(name=name, cpus=cpus, gpus=gpus, labels=marked | labels, running=running, startable=startable)


def config(lmbda: float = 1.0, ray: dict[str, Any] | None = None, **workers: int) -> Config:
    sections: dict[str, Any] = {role: {"num_workers": n} for role, n in workers.items()}
    return Config.model_validate(sections | {"distill": {"lmbda": lmbda}, "ray": ray or {}})


def on(*groups: NodeGroup, max_new_nodes: int | None = None) -> Nodes:
    return Nodes(groups=groups, max_new_nodes=max_new_nodes)


def landing(placement: Placement) -> dict[str, dict[str, int]]:
    return {
        role: dict(Counter(worker.group.name for worker in placement.plan.of_role(role)))
        for role in ("learner", "teacher", "rollout")
    }


def test_without_gpus_the_roles_share_the_cpus_and_all_cores() -> None:
    placement = place(config(), on(group("here", cpus=2)))
    assert placement.cpus_per_worker == 0.66  # 2 / 3, rounded down
    assert placement.threads_per_worker == 2
    assert set(placement.gpus_per_worker.values()) == {0}
    assert placement.selectors == {"learner": [{}], "teacher": [{}], "rollout": [{}]}


def test_no_worker_s_share_of_cpus_reaches_over_two_nodes() -> None:
    # Two nodes of one core, three workers: 2 / 3 of a core would fit once on each, half a core fits twice.
    assert place(config(), on(group("small", cpus=1, running=2))).cpus_per_worker == 0.5


@pytest.mark.parametrize(("gpus", "share"), [(1, 1 / 3), (2, 1 / 2), (3, 1), (8, 1)])
def test_no_worker_s_share_of_a_gpu_reaches_over_two(gpus: int, share: float) -> None:
    assert set(place(config(), on(group("here", cpus=16, gpus=gpus))).gpus_per_worker.values()) == {share}


def test_a_machine_with_fewer_cores_than_workers_beside_its_gpu_still_holds_them() -> None:
    placement = place(config(), on(group("notebook", cpus=2, gpus=1)))
    assert (placement.cpus_per_worker, placement.threads_per_worker) == (0.5, 1)


def test_several_learner_workers_share_no_gpu_with_each_other() -> None:
    # Three GPUs: one for each learner worker, the third for teacher and rollout worker.
    placement = place(config(learner=2), on(group("here", cpus=16, gpus=3)))
    assert placement.gpus_per_worker == {"learner": 1, "teacher": 1 / 2, "rollout": 1 / 2}
    with pytest.raises(PlacementError, match=r"no room for 1 of 1 rollout worker\(s\), 1 of 1 teacher worker\(s\)"):
        place(config(learner=2), on(group("here", cpus=16, gpus=2)))


def divided(tensor_parallel: int, gpus_per_teacher: int = 1, rollouts: int = 1) -> Config:
    return Config.model_validate(
        {
            "rollout": {"tensor_parallel": tensor_parallel, "num_workers": rollouts},
            "teacher": {"gpus_per_worker": gpus_per_teacher},
            "distill": {"lmbda": 1.0},
        }
    )


def test_a_worker_that_is_divided_has_whole_gpus_of_one_node_to_itself() -> None:
    # Eight GPUs: four and two are taken whole, and the learner has one of the two that are left.
    placement = place(divided(4, 2), on(group("here", cpus=16, gpus=8)))
    assert placement.gpus_per_worker == {"learner": 1, "teacher": 2, "rollout": 4}
    # Two nodes of four: the rollout workers take a whole node and half of one, learner and teacher share no half.
    placement = place(divided(2, 1, rollouts=3), on(group("node", cpus=16, gpus=4, running=2)))
    assert placement.gpus_per_worker == {"learner": 1, "teacher": 1, "rollout": 2}
    assert landing(placement)["rollout"] == {"node": 3}


def test_the_others_share_what_a_divided_worker_leaves() -> None:
    placement = place(divided(2), on(group("here", cpus=16, gpus=3)))
    assert placement.gpus_per_worker == {"learner": 1 / 2, "teacher": 1 / 2, "rollout": 2}


def test_a_worker_is_not_divided_over_two_nodes() -> None:
    with pytest.raises(PlacementError) as caught:
        place(divided(2), on(group("node", cpus=8, gpus=1, running=4)))
    assert str(caught.value) == (
        "the cluster has 32 CPUs and 4 GPUs: no room for 1 of 1 rollout worker(s), which need at least 0.1 CPUs each; "
        "a rollout worker takes 2 GPUs of one node for itself (rollout.tensor_parallel), and the largest has 1; add "
        "nodes, or lower rollout.num_workers"
    )


def test_without_gpus_a_divided_worker_takes_its_turn_as_any_other() -> None:
    assert place(divided(4, 2), on(group("here", cpus=2))) == place(divided(1), on(group("here", cpus=2)))


def test_nothing_on_policy_needs_no_rollout_worker() -> None:
    assert num_workers(config(lmbda=0)) == {"rollout": 0, "teacher": 1, "learner": 1}
    assert place(config(lmbda=0), on(group("here", cpus=2))).selectors["rollout"] == []


def test_a_cluster_without_room_says_who_needs_what() -> None:
    with pytest.raises(PlacementError) as caught:
        place(config(rollout=40, teacher=8), on(group("here", cpus=2)))
    # Forty workers of 0.05 CPUs fit: the learner, eight teachers, and 31 of 40 rollout workers.
    assert str(caught.value) == (
        "the cluster has 2 CPUs and 0 GPUs: no room for 9 of 40 rollout worker(s), which need at least 0.05 CPUs each; "
        "add nodes, or lower rollout.num_workers"
    )


HEAD = group("head")
STEADY = group("gpu-learner", 16, 1, market="on-demand", running=0, startable=1)
SPOT = group("gpu-spot", 8, 1, market="spot", running=0, startable=4)


def test_the_learner_stays_off_spot_nodes_and_the_others_go_there() -> None:
    placement = place(config(rollout=3), on(HEAD, STEADY, SPOT))
    assert landing(placement) == {"learner": {"gpu-learner": 1}, "teacher": {"gpu-spot": 1}, "rollout": {"gpu-spot": 3}}
    assert placement.selectors == {
        "learner": [{MARKET: "!spot"}],
        "teacher": [{MARKET: "spot"}],
        "rollout": [{MARKET: "spot"}] * 3,
    }
    assert placement.plan.nodes_to_start == {"gpu-learner": 1, "gpu-spot": 4}
    assert all(not validate_label_selector(each) for role in placement.selectors.values() for each in role)


def test_what_spot_nodes_have_no_room_for_goes_beside_the_learner() -> None:
    # Two GPUs for six workers: three share each. Three of five go to the spot node, two beside the learner.
    spot = group("gpu-spot", 8, 1, market="spot", running=0, startable=1)
    placement = place(config(rollout=4), on(HEAD, STEADY, spot))
    assert placement.gpus_per_worker["rollout"] == 1 / 3
    assert landing(placement)["rollout"] == {"gpu-spot": 2, "gpu-learner": 2}
    assert placement.selectors["rollout"] == [{MARKET: "spot"}] * 2 + [{MARKET: "!spot"}] * 2


def test_a_learner_goes_to_a_spot_node_where_there_is_no_other() -> None:
    placement = place(config(), on(HEAD, SPOT))
    assert landing(placement)["learner"] == {"gpu-spot": 1}
    assert placement.selectors["learner"] == [{}]


def test_a_learner_that_does_not_fit_on_steady_nodes_is_refused_rather_than_put_on_spot_ones() -> None:
    with pytest.raises(PlacementError, match=r"no room for 1 of 2 learner worker\(s\)"):
        place(config(learner=2), on(HEAD, STEADY, SPOT))


def test_spot_nodes_are_optional_only_where_everybody_fits_beside_them() -> None:
    roomy = group("gpu-learner", 16, 4, market="on-demand")
    assert place(config(), on(roomy, SPOT)).spot_is_optional
    # The fallback of a rollout worker would take the learner's only place.
    assert not place(config(), on(STEADY, SPOT)).spot_is_optional


def test_labels_of_the_configuration_come_first() -> None:
    big = group("gpu-h100", 16, 1, accelerator="H100")
    small = group("gpu-l4", 16, 1, running=2, accelerator="L4")
    placement = place(config(ray={"teacher_labels": ["accelerator=H100"]}), on(big, small))
    assert landing(placement) == {"learner": {"gpu-l4": 1}, "teacher": {"gpu-h100": 1}, "rollout": {"gpu-l4": 1}}
    assert placement.selectors["teacher"] == [{"accelerator": "H100"}]
    with pytest.raises(PlacementError, match="teacher only on nodes with accelerator=B200"):
        place(config(ray={"teacher_labels": ["accelerator=B200"]}), on(big, small))


def test_a_market_that_the_configuration_names_is_not_chosen_again() -> None:
    placement = place(config(ray={"learner_labels": [f"{MARKET}=spot"]}), on(STEADY, SPOT))
    assert placement.selectors["learner"] == [{MARKET: "spot"}]


def test_the_limit_over_all_groups_counts() -> None:
    with pytest.raises(PlacementError, match="when all of its nodes run: no room for"):
        place(config(rollout=30), on(HEAD, STEADY, SPOT, max_new_nodes=1))
    # One new node in all: everybody on one GPU, the learner's.
    placement = place(config(), on(HEAD, STEADY, SPOT, max_new_nodes=1))
    assert landing(placement) == {role: {"gpu-learner": 1} for role in ("learner", "teacher", "rollout")}


@pytest.mark.parametrize(
    ("selector", "matches"),
    [
        ("spot", False),
        ("!spot", True),
        ("on-demand", True),
        ("in(spot, on-demand)", True),
        ("!in(spot,on-demand)", False),
    ],
)
def test_selectors_mean_what_they_mean_to_ray(selector: str, matches: bool) -> None:
    assert STEADY.matches({MARKET: selector}) == matches
    assert validate_label_selector({MARKET: selector.replace(" ", "")}) is None


def test_a_missing_label_matches_only_what_is_negated() -> None:
    assert HEAD.matches({MARKET: "!spot"})
    assert not HEAD.matches({MARKET: "on-demand"})


@given(
    gpus=st.lists(st.integers(0, 4), min_size=1, max_size=6),
    workers=st.tuples(st.integers(1, 6), st.integers(1, 3), st.integers(1, 3)),
)
def test_no_gpu_holds_more_than_one_whole(gpus: list[int], workers: tuple[int, int, int]) -> None:
    rollout, teacher, learner = workers
    groups = [group(f"node-{i}", 64, n) for i, n in enumerate(gpus)]
    try:
        placement = place(config(rollout=rollout, teacher=teacher, learner=learner), on(*groups))
    except PlacementError:
        return
    for each in groups:
        placed = [worker for worker in placement.plan.workers if worker.group is each]
        assert sum(placement.gpus_per_worker[worker.role] for worker in placed) <= each.gpus + 1e-9
        assert len(placed) * placement.cpus_per_worker <= each.cpus + 1e-9
    assert len(placement.plan.workers) == rollout + teacher + learner
