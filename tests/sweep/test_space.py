"""What a sweep tries: combinations, corners, draws, names, and Ray Tune's samplers of it."""

import itertools
import re
from pathlib import Path

import numpy as np
import pytest

from rayqd.config import Config
from rayqd.config.sections.sweep import Span, SweepConfig
from rayqd.config.sweep import load_sweep
from rayqd.errors import ConfigError
from rayqd.sweep.space import (
    check_values,
    corners,
    count_trials,
    enumerate_grid,
    make_tune_space,
    point_at,
    sample_trials,
    settings_at,
)
from rayqd.sweep.trials import Trial, value_label

LR = Span(low=1e-5, high=1e-3, log=True)
RANK = Span(low=4, high=64, integer=True)


def sweep_error(*flags: str) -> str:
    with pytest.raises(ConfigError) as caught:
        check_values(load_sweep(flags))
    return str(caught.value)


def test_a_grid_is_every_combination_once_and_the_last_setting_changes_fastest():
    trials = enumerate_grid({"learner.lr": [1e-4, 1e-3], "distill.lmbda": [0.0, 0.5, 1.0]})
    assert [trial.number for trial in trials] == [1, 2, 3, 4, 5, 6]
    assert [tuple(trial.settings.values()) for trial in trials] == list(
        itertools.product([1e-4, 1e-3], [0.0, 0.5, 1.0])
    )


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({"distill.lmbda": 0.5, "learner.lr": 1e-4}, "003-lmbda=0.5-lr=1e-4"),
        ({"learner.lr": 0.000313, "adapter.rank": 64}, "003-lr=3.13e-4-rank=64"),
        ({"learner.lr": 0.02, "learner.weight_decay": 0.0}, "003-lr=0.02-weight_decay=0"),
        ({"model.name": "/models/a b", "teacher.name": "org/big"}, "003-model.name=a_b-teacher.name=big"),
        ({"adapter.targets": ["q_proj", "v_proj"], "quant.act_order": True}, "003-targets=q_proj_v_proj-act_order=on"),
        ({"model.revision": "none"}, "003-revision=none"),
    ],
)
def test_a_trial_s_name_says_what_it_is_and_is_a_name_that_a_run_may_have(settings, name):
    trial = Trial(number=3, settings=settings)
    assert trial.name == name
    assert Config(name=f"sweep/{trial.name}").run_dir.parts[-2:] == ("sweep", name)


def test_a_name_never_grows_longer_than_a_directory_s_may_be():
    settings = {f"section.a_setting_of_a_long_name_{i}": "a value of some length" for i in range(20)}
    assert len(Trial(number=1, settings=settings).name) <= 120


@pytest.mark.parametrize("value", [1e-4, 3.13e-4, 0.5, 1.0, 123.456, 1e-12, 0.0099, 1e6])
def test_a_number_s_label_reads_back_to_the_same_number(value):
    assert float(value_label(value)) == value


def test_ranges_and_lists_are_ray_tunes_own_samplers():
    from ray.tune.search.sample import Categorical, Float, Integer, LogUniform, Uniform

    space = make_tune_space({
        "lr": LR,
        "decay": Span(low=0, high=0.1),
        "rank": RANK,
        "log_rank": Span(low=4, high=64, integer=True, log=True),
        "beta": [0.0, 0.5, 1.0],
    })  # fmt: skip
    lr, decay, rank, log_rank, beta = space.values()
    assert (type(lr), lr.lower, lr.upper, isinstance(lr.get_sampler(), LogUniform)) == (Float, 1e-5, 1e-3, True)
    assert (type(decay), decay.lower, decay.upper, isinstance(decay.get_sampler(), Uniform)) == (Float, 0.0, 0.1, True)
    assert (type(rank), isinstance(rank.get_sampler(), Uniform)) == (Integer, True)
    assert (type(log_rank), isinstance(log_rank.get_sampler(), LogUniform)) == (Integer, True)
    # Tune leaves the upper end out; a range of ours has it in
    assert [(domain.lower, domain.upper) for domain in (rank, log_rank)] == [(4, 65), (4, 65)]
    assert (type(beta), list(beta.categories)) == (Categorical, [0, 1, 2])


def test_ranges_and_lists_are_optunas_distributions():
    optuna = pytest.importorskip("optuna")
    from ray.tune.search.optuna import OptunaSearch

    space = OptunaSearch.convert_search_space(
        make_tune_space({"learner.lr": LR, "adapter.rank": RANK, "x": ["a", "b"]})
    )
    assert space == {
        "learner.lr": optuna.distributions.FloatDistribution(1e-5, 1e-3, log=True),
        "adapter.rank": optuna.distributions.IntDistribution(4, 64),
        "x": optuna.distributions.CategoricalDistribution([0, 1]),
    }


def test_settings_and_points_are_each_other_s_inverse():
    over = {"learner.lr": LR, "adapter.rank": RANK, "adapter.targets": [["q_proj"], ["q_proj", "v_proj"]]}
    settings = {"learner.lr": 3.1e-4, "adapter.rank": 7, "adapter.targets": ["q_proj", "v_proj"]}
    assert point_at(settings, over) == {"learner.lr": 3.1e-4, "adapter.rank": 7, "adapter.targets": 1}
    assert settings_at(point_at(settings, over), over) == settings


def test_draws_lie_in_their_ranges_have_three_digits_and_depend_on_the_seed_alone():
    over = {"learner.lr": LR, "adapter.rank": RANK, "distill.lmbda": [0.0, 0.5, 1.0]}
    trials = sample_trials(over, 200, seed=1)
    assert trials == sample_trials(over, 200, seed=1) != sample_trials(over, 200, seed=2)
    assert [trial.number for trial in trials] == list(range(1, 201))
    rates, ranks, lambdas = zip(*(trial.settings.values() for trial in trials), strict=True)
    assert all(1e-5 <= rate <= 1e-3 and float(f"{rate:.3g}") == rate for rate in rates)
    # even over orders of magnitude: half of them below the geometric mean, 1e-4, give or take 4 deviations
    assert abs(sum(rate < 1e-4 for rate in rates) - 100) < 4 * np.sqrt(200 / 4)
    assert all(isinstance(rank, int) and 4 <= rank <= 64 for rank in ranks)
    assert set(lambdas) == {0.0, 0.5, 1.0}
    assert all(re.fullmatch(r"\d{3}-lr=[\d.e-]+-rank=\d+-lmbda=[\d.]+", trial.name) for trial in trials)


def test_no_two_draws_are_alike_as_long_as_there_are_enough():
    trials = sample_trials({"a.b": [1, 2], "a.c": [1, 2, 3]}, 6, seed=0)
    assert len({tuple(trial.settings.values()) for trial in trials}) == 6


@pytest.mark.parametrize(
    ("sweep", "expected"),
    [
        (SweepConfig(over={"a": [1, 2], "b": [1, 2, 3]}), 6),
        (SweepConfig(over={"a": LR}, search="random"), 16),
        (SweepConfig(over={"a": LR}, search="optuna", num_trials=5), 5),
        (SweepConfig(over={"a": [1, 2, 3]}, search="random"), 3),
        (SweepConfig(over={"a": Span(low=1, high=4, integer=True)}, search="random", num_trials=4), 4),
    ],
)
def test_how_many_trials_there_are(sweep, expected):
    assert count_trials(sweep) == expected


def test_more_trials_than_combinations_are_refused():
    with pytest.raises(ConfigError, match=r"there are only 4 combinations for 5 trials: set sweep.num_trials to 4"):
        count_trials(SweepConfig(over={"a": [1, 2], "b": [1, 2]}, search="random", num_trials=5))
    with pytest.raises(ConfigError, match="the grid has 1,000,000 combinations"):
        count_trials(SweepConfig(over={"a": list(range(1000)), "b": list(range(1000))}))


def test_corners_are_values_with_both_ends_of_ranges():
    assert list(corners({"a": [1, 2], "b": LR})) == [
        {"a": 1, "b": 1e-5},
        {"a": 1, "b": 1e-3},
        {"a": 2, "b": 1e-5},
        {"a": 2, "b": 1e-3},
    ]
    many = {f"a{i}": Span(low=0, high=1) for i in range(20)}
    assert len(list(corners(many))) == 40  # each end alone, where 2**20 would be too many


def test_every_combination_of_a_grid_and_both_ends_of_a_range_must_be_settings():
    flags = ("--sweep.over.rollout.min-new-tokens", "4,16", "--sweep.over.rollout.max-new-tokens", "8,32")
    # 4 with 8, 4 with 32 and 16 with 32 go together
    assert sweep_error(*flags) == "sweep.over.rollout.max_new_tokens: 8: min_new_tokens=16 is above max_new_tokens=8"
    ends = ("--sweep.over.distill.lmbda.low", "0.5", "--sweep.over.distill.lmbda.high", "1.5")
    assert sweep_error("--sweep.search", "random", *ends) == (
        "sweep.over.distill.lmbda: 1.5: must be a number from 0 to 1"
    )
    assert sweep_error("--sweep.over.quant.rule", "signed,sign") == (
        'sweep.over.quant.rule: "sign": must be one of signed, absmax, asymmetric, searched; did you mean signed?'
    )


def test_a_sweep_file_of_the_repository_holds_values_that_the_settings_take():
    for path in sorted((Path(__file__).parents[2] / "tune").glob("*.toml")):
        if "[sweep" in path.read_text():
            config = load_sweep([f"@{path}"])
            check_values(config)
            assert count_trials(config.sweep) > 1
