import pytest
from hypothesis import given
from hypothesis import strategies as st

from rayqd.actors.balance import balanced_shares
from rayqd.actors.placement import num_workers, place
from rayqd.config import Config
from rayqd.errors import PlacementError


@given(st.lists(st.integers(1, 1000), max_size=40), st.integers(1, 6))
def test_shares_hold_every_index_once_and_differ_by_no_more_than_the_longest(sizes: list[int], num_shares: int) -> None:
    shares = balanced_shares(sizes, num_shares)
    assert len(shares) == num_shares
    assert sorted(i for share in shares for i in share) == list(range(len(sizes)))
    loads = [sum(sizes[i] for i in share) for share in shares]
    assert max(loads) - min(loads) <= max(sizes, default=0)


def config(**workers: int) -> Config:
    return Config.model_validate({role: {"num_workers": n} for role, n in workers.items()})


def test_without_gpus_the_roles_share_the_cpus_and_all_cores() -> None:
    placement = place(config(), cpus=2, gpus=0, cores_per_node=2)
    assert placement.cpus_each == 0.66  # 2 / 3, rounded down
    assert placement.threads_each == 2
    assert placement.gpus_each == 0


@pytest.mark.parametrize(("gpus", "share"), [(1, 1 / 3), (2, 1 / 2), (3, 1), (8, 1)])
def test_no_worker_s_share_of_a_gpu_reaches_over_two(gpus: int, share: float) -> None:
    assert place(config(), cpus=16, gpus=gpus, cores_per_node=16).gpus_each == share


def test_nothing_on_policy_needs_no_rollout_worker() -> None:
    off_policy = Config.model_validate({"distill": {"lmbda": 0}})
    assert num_workers(off_policy) == {"rollout": 0, "teacher": 1, "learner": 1}


def test_a_cluster_without_room_says_who_needs_what() -> None:
    with pytest.raises(PlacementError) as caught:
        place(config(rollout=40, teacher=8), cpus=2, gpus=0, cores_per_node=2)
    assert str(caught.value) == (
        "the cluster has 2 CPUs and 0 GPUs; 40 rollout worker(s), 8 teacher worker(s), 1 learner worker(s) "
        "need at least 0.05 CPUs each: add nodes, or lower rollout.num_workers, teacher.num_workers or "
        "learner.num_workers"
    )
