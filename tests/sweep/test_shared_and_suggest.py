"""What trials share, and what is tried next, also in a sweep that goes on."""

import math
from typing import Any

import pytest

from rayqd.config import Config
from rayqd.config.sections.sweep import Span, SweepConfig
from rayqd.sweep.shared import SharedResources, data_key, teacher_key
from rayqd.sweep.suggest import FixedTrials, OptunaTrials, SuggesterSearch
from rayqd.sweep.trials import Trial


def config(**sections: Any) -> Config:
    return Config.model_validate(sections)


SAME = [
    config(),
    config(name="other", learner={"lr": 1e-3}, distill={"lmbda": 0.5, "beta": 0.1}, adapter={"rank": 4}),
    config(seed=7, quant={"format": "nf4"}, distill={"temperature": 2.0}),
]
OTHERS = [
    config(model={"name": "b"}),
    config(model={"dtype": "float32"}),
    config(teacher={"name": "b"}),
    config(teacher={"payload": "topk"}),
    config(teacher={"payload": "topk"}, distill={"temperature": 2.0}),
]


def test_one_teacher_serves_all_trials_but_those_that_need_another():
    assert len({teacher_key(each) for each in SAME}) == 1
    assert len({teacher_key(each) for each in [*SAME, *OTHERS]}) == 1 + len(OTHERS)


def test_data_is_shared_but_by_trials_that_read_other_rows_or_other_tokens():
    same = [config(), config(learner={"lr": 1e-3}, quant={"format": "nf4"}, teacher={"name": "b"})]
    others = [config(seed=7), config(learner={"steps": 7}), config(data={"source": "x"}), config(model={"name": "b"})]
    assert len({data_key(each) for each in same}) == 1
    assert len({data_key(each) for each in [*same, *others]}) == 1 + len(others)


def test_a_teacher_is_started_once_and_goes_when_another_needs_its_room():
    told: list[str] = []

    def start(trial: Config, num_before: int) -> list[str]:
        told.append(f"start {trial.model.name} {num_before}")
        return [trial.model.name]

    shared = SharedResources(lambda trial: trial.seed, start, lambda teacher: told.append(f"end {teacher}"))
    a, b, c = (config(model={"name": name}) for name in "abc")
    assert shared.borrow_teachers(a) == shared.borrow_teachers(a) == ["a"]
    assert shared.borrow_teachers(b) == ["b"]  # a is in use
    shared.return_teachers(a)
    shared.borrow_teachers(c)  # a is still in use, once
    shared.return_teachers(a)
    shared.return_teachers(b)
    assert shared.borrow_teachers(b) == ["b"]  # idle, and still there
    shared.borrow_teachers(config(model={"name": "d"}))
    assert told == ["start a 0", "start b 1", "start c 2", "end a", "start d 3"]


def test_data_is_loaded_once():
    loaded: list[int] = []
    shared = SharedResources(lambda trial: loaded.append(trial.seed) or trial.seed, lambda trial, num: [], print)
    assert [shared.data(config(seed=seed)) for seed in (1, 1, 2, 1)] == [1, 1, 2, 1]
    assert loaded == [1, 2]


def number(trial: Trial, key: str) -> float:
    value = trial.settings[key]
    assert isinstance(value, float)
    return value


def names(suggester: Any, count: int) -> list[Trial | None]:
    return [suggester.next(str(i)) for i in range(count)]


def test_a_refused_trial_is_passed_over():
    trials = [Trial(number=number, settings={"a": number}) for number in (1, 2, 3)]
    suggestions = SuggesterSearch(
        FixedTrials(trials), lambda trial: {"number": trial.number} if trial.number != 2 else None, "kl_to_teacher"
    )
    assert [suggestions.suggest("x") for _ in range(3)] == [{"number": 1}, {"number": 3}, suggestions.FINISHED]


SPACE = SweepConfig(
    search="optuna", over={"learner.lr": Span(low=1e-6, high=1e-2, log=True), "distill.lmbda": [0.0, 0.5, 1.0]}
)


def test_optuna_learns_where_it_is_good():
    pytest.importorskip("optuna")
    search = OptunaTrials(SPACE, 60, ended=[], unfinished=[])
    trials: list[Trial] = []
    for i in range(60):
        trial = search.next(str(i))
        assert trial is not None
        trials.append(trial)
        assert trial.number == i + 1
        # Best near 1e-3 with lmbda 1, by orders of magnitude.
        kl = abs(math.log10(number(trial, "learner.lr")) + 3) + (1 - number(trial, "distill.lmbda"))
        search.end(str(i), {"kl_to_teacher": kl, "training_iteration": 1}, failed=False)
    assert search.next("one more") is None
    late = trials[-20:]
    assert sum(trial.settings["distill.lmbda"] == 1.0 for trial in late) > 10  # a third of them by chance
    assert sum(1e-4 < number(trial, "learner.lr") < 1e-2 for trial in late) > 15  # half of them by chance


def test_a_sweep_that_goes_on_first_ends_what_it_began_and_does_not_draw_the_same_again():
    pytest.importorskip("optuna")
    first = names(OptunaTrials(SPACE, 8, ended=[], unfinished=[]), 8)
    assert first == names(OptunaTrials(SPACE, 8, ended=[], unfinished=[]), 8)
    ended = [(first[0], 0.3), (first[2], 0.2)]
    again = names(OptunaTrials(SPACE, 8, ended=ended, unfinished=[first[1], first[3]]), 7)
    assert again[:2] == [first[1], first[3]]
    assert [trial.number for trial in again[2:-1]] == [5, 6, 7, 8]
    assert again[-1] is None
    drawn_before = {number(trial, "learner.lr") for trial in first[:4]}
    assert drawn_before.isdisjoint(number(trial, "learner.lr") for trial in again[2:-1])
