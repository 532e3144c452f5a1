import hashlib
from fractions import Fraction
from typing import Any

import pytest

from rayqd.config import Config
from rayqd.data import Plan
from rayqd.data.plan import make_plan, steps_ahead
from rayqd.types import PlannedSequence


def _plan(**changes: Any) -> Plan:
    return Plan(**{"num_examples": (20,), "batch_size": 8, "lmbda": 0.5, "seed": 42} | changes)


def _sequences(plan: Plan, steps: int) -> list[PlannedSequence]:
    return [sequence for step in range(steps) for sequence in plan.step(step)]


@pytest.mark.parametrize("batch_size", [1, 3, 8])
@pytest.mark.parametrize("lmbda", [0.0, 0.1, 1 / 3, 0.29, 0.5, 0.999, 1.0])
def test_lambda_is_kept_exactly_at_every_step(lmbda: float, batch_size: int) -> None:
    plan = _plan(lmbda=lmbda, batch_size=batch_size)
    share = Fraction(str(lmbda))
    total = 0
    for step in range(1000):
        now = plan.num_on_policy(step)
        assert step >= 100 or now == sum(sequence.on_policy for sequence in plan.step(step))
        assert abs(now - share * batch_size) < 1  # either neighbour of lmbda * batch_size, or it itself
        total += now
        assert abs(total - share * batch_size * (step + 1)) <= Fraction(1, 2)


def test_lambda_of_a_tenth_gives_the_counts_done_by_hand() -> None:
    # 0.1 * 8 = 0.8 a step: 0.8 1.6 2.4 3.2 4.0 4.8 rounds to 1 2 2 3 4 5, whose differences are
    assert [_plan(lmbda=0.1).num_on_policy(step) for step in range(6)] == [1, 1, 0, 1, 1, 1]
    # 0.5 * 1: 0.5 1.0 1.5 2.0, halves up, gives 1 1 2 2
    assert [_plan(lmbda=0.5, batch_size=1).num_on_policy(step) for step in range(4)] == [1, 0, 1, 0]


def test_each_example_comes_once_an_epoch_though_steps_cross_epochs() -> None:
    # 20 examples, 8 a step: 15 steps are 120 sequences, which are 6 epochs.
    examples = [sequence.example for sequence in _sequences(_plan(), 15)]
    epochs = [examples[start : start + 20] for start in range(0, 120, 20)]
    assert all(sorted(epoch) == list(range(20)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 6


def test_a_fresh_plan_at_step_s_gives_what_a_plan_from_step_zero_gives() -> None:
    from_the_start = _sequences(_plan(), 40)
    for step in (39, 0, 17, 3):
        assert _plan().step(step) == from_the_start[step * 8 : step * 8 + 8]


def test_step_and_index_are_those_asked_for() -> None:
    assert [(sequence.step, sequence.index) for sequence in _plan().step(5)] == [(5, index) for index in range(8)]


@pytest.mark.parametrize("use", ["example", "on_policy", "seed"])
def test_another_run_seed_changes_every_choice(use: str) -> None:
    chosen = [[getattr(s, use) for s in _sequences(_plan(seed=seed), 5)] for seed in (1, 2)]
    assert chosen[0] != chosen[1]


def test_lambda_changes_neither_the_data_order_nor_the_sampling_seeds() -> None:
    chosen = [[(s.example, s.seed) for s in _sequences(_plan(lmbda=lmbda), 10)] for lmbda in (0.0, 0.5, 1.0)]
    assert chosen[0] == chosen[1] == chosen[2]


def test_sampling_seeds_are_distinct_31_bit_integers() -> None:
    seeds = [sequence.seed for sequence in _sequences(_plan(), 500)]
    assert len(set(seeds)) == 4000
    assert min(seeds) >= 0
    assert 2**30 < max(seeds) < 2**31


def test_on_policy_falls_on_every_index_and_every_example_alike() -> None:
    # 4 of 8 a step over 2000 steps: each index 1000 times, standard deviation sqrt(2000 / 4) = 22; each of the 20
    # examples in half of its 800 epochs, 400, standard deviation at most 14. Bounds are five of those.
    sequences = [sequence for sequence in _sequences(_plan(), 2000) if sequence.on_policy]
    for index in range(8):
        assert abs(sum(sequence.index == index for sequence in sequences) - 1000) < 112
    for example in range(20):
        assert abs(sum(sequence.example == example for sequence in sequences) - 400) < 71


def test_lambda_holds_from_the_first_on_policy_step_on() -> None:
    late, plan = _plan(first_on_policy_step=10, lmbda=0.3), _plan(lmbda=0.3)
    assert [late.num_on_policy(step) for step in range(30)] == [0] * 10 + [plan.num_on_policy(s) for s in range(20)]
    assert not any(sequence.on_policy for sequence in _sequences(late, 10))
    assert [s.example for s in _sequences(late, 30)] == [s.example for s in _sequences(plan, 30)]


def test_the_student_is_needed_where_it_writes_one_of_the_sequences() -> None:
    plan = _plan(lmbda=0.05, batch_size=4)  # 0.2 a step: 0.2 0.4 0.6 0.8 1.0 1.2 1.4 1.6 rounds to 0 0 1 1 1 1 1 2
    assert [plan.needs_student([step]) for step in range(8)] == [step in (2, 7) for step in range(8)]
    assert [plan.needs_student(steps_ahead(step, 2, 8)) for step in range(8)] == [
        step in (0, 1, 2, 5, 6, 7) for step in range(8)
    ]


def test_the_share_of_the_steps_is_rounded_to_a_step() -> None:
    config = Config.model_validate({"distill": {"on_policy_after": 0.75}, "learner": {"steps": 10}})
    assert make_plan(config, [20]).first_on_policy_step == 8  # 7.5, half to even


def test_one_source_is_planned_as_it_was_before_there_were_several() -> None:
    # Written by the version before: example, on-policy or not, and sampling seed of 200 steps of 8, and of step 5.
    planned = [(s.example, s.on_policy, s.seed) for s in _sequences(_plan(), 200)]
    digest = hashlib.sha256(repr(planned).encode()).hexdigest()
    assert digest == "281eb22e88964f033539b40f839571ff24c3b371ec2d02d150b2c41058250586"
    assert planned[40:43] == [(9, False, 649176580), (6, True, 883184374), (15, True, 1430809402)]


MIXED: dict[str, Any] = {"num_examples": (20, 5, 7), "weights": (1.0, 2.0, 0.5)}


def test_each_source_goes_through_its_own_epochs() -> None:
    # 7 sequences are 2 : 4 : 1. After 100 steps of 7 those are 200 of 20 examples, 400 of 5 and 100 of 7.
    sequences = _sequences(_plan(batch_size=7, **MIXED), 100)
    for source, first, size, drawn in ((0, 0, 20, 200), (1, 20, 5, 400), (2, 25, 7, 100)):
        examples = [s.example for s in sequences if s.source == source]
        assert len(examples) == drawn
        epochs = [examples[start : start + size] for start in range(0, drawn // size * size, size)]
        assert all(sorted(epoch) == list(range(first, first + size)) for epoch in epochs)
        assert len({tuple(epoch) for epoch in epochs}) > 1


def test_sources_are_independent_of_what_is_on_policy_and_of_the_seeds() -> None:
    mixed, alone = _sequences(_plan(**MIXED), 300), _sequences(_plan(), 300)
    assert [(s.on_policy, s.seed) for s in mixed] == [(s.on_policy, s.seed) for s in alone]
    # Half of 2400 are on-policy; of a source that gives 4/7 of them, 1371, half are, with a deviation of 18.5 at most.
    assert abs(sum(s.on_policy for s in mixed if s.source == 1) - 686) < 93


def test_a_fresh_plan_of_several_sources_gives_the_same_at_any_step() -> None:
    sequences = _sequences(_plan(**MIXED), 40)
    for step in (39, 0, 17):
        assert _plan(**MIXED).step(step) == sequences[step * 8 : step * 8 + 8]


def test_what_is_counted_is_what_is_drawn() -> None:
    plan = _plan(**MIXED)
    sequences = _sequences(plan, 30)
    assert plan.num_drawn(30) == [sum(s.source == source for s in sequences) for source in range(3)]


def test_the_first_source_is_read_in_the_same_order_whatever_is_mixed_in() -> None:
    mixed = [s.example for s in _sequences(_plan(**MIXED), 100) if s.source == 0]
    assert mixed == [s.example for s in _sequences(_plan(), 100)][: len(mixed)]
