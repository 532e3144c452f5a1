"""A sweep file and its flags: what it comes to, and one line for each thing that can be wrong."""

from collections.abc import Callable
from pathlib import Path

import pytest

from rayqd.config import load_config, to_toml
from rayqd.config.sections.sweep import Span, SweepConfig
from rayqd.config.sweep import SweepSpec, load_sweep, sweep_differences, sweep_help, sweep_toml
from rayqd.errors import ConfigError

REPOSITORY = Path(__file__).parents[2]

LISTS = "[sweep.over]\nlearner.lr = [1e-4, 3e-4]\ndistill.lmbda = [0.0, 0.5, 1.0]\n"
RANGES = """
[sweep]
search = "optuna"
num_trials = 8
[sweep.over]
learner.lr = {low = 1e-5, high = 1e-3, log = true}
adapter.rank = {low = 4, high = 64}
distill.lmbda = [0, 1]
"""


@pytest.fixture
def read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., SweepSpec]:
    monkeypatch.chdir(tmp_path)

    def read_text(text: str, *flags: str) -> SweepSpec:
        Path("s.toml").write_text(text)
        return load_sweep(["@s.toml", *flags])

    return read_text


@pytest.fixture
def error(read: Callable[..., SweepSpec]) -> Callable[..., str]:
    def message(text: str, *flags: str) -> str:
        with pytest.raises(ConfigError) as caught:
            read(text, *flags)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    return message


@pytest.mark.parametrize("path", sorted((REPOSITORY / "tune").glob("*.toml")), ids=lambda path: path.name)
def test_every_sweep_in_the_repository_loads(path):
    if "[sweep" not in path.read_text():
        pytest.skip("no sweep")
    config = load_sweep([f"@{path}"])
    assert config.config().name == path.stem


def test_a_list_is_choices_and_a_table_a_range_whose_numbers_are_whole_where_the_setting_s_are(read):
    sweep = read(RANGES).sweep
    assert (sweep.search, sweep.num_trials, sweep.scheduler) == ("optuna", 8, "none")
    assert sweep.over == {
        "learner.lr": Span(low=1e-5, high=1e-3, log=True),
        "adapter.rank": Span(low=4, high=64, integer=True),
        "distill.lmbda": [0, 1],
    }


def test_settings_outside_of_the_section_are_those_of_all_trials(read):
    config = read(f"name = 'mine'\nlearner.steps = 7\n{LISTS}", "--distill.beta", "0.5")
    assert (config.config().name, config.config().learner.steps, config.config().distill.beta) == ("mine", 7, 0.5)
    assert read(LISTS).config().name == "sweep"


def test_values_are_laid_over_what_is_common(read):
    trial = read(LISTS, "--learner.steps", "7").config({"learner.lr": 3e-4, "distill.lmbda": 0.5})
    assert (trial.learner.steps, trial.learner.lr, trial.distill.lmbda) == (7, 3e-4, 0.5)


def test_defaults_that_follow_a_swept_setting_follow_it(read):
    # nf4 has blocks of 64 and no GPTQ unless told otherwise, whatever the default format has
    config = read("[sweep.over]\nquant.format = ['int4', 'nf4']\n")
    assert config.config({"quant.format": "nf4"}) == load_config(["--quant.format", "nf4", "--name", "sweep"])


def test_flags_win_over_the_file(read):
    flags = ("--sweep.num-trials", "3", "--sweep.search=random", "--sweep.over.learner.lr", "1e-3,1e-2")
    sweep = read(RANGES, *flags).sweep
    assert (sweep.num_trials, sweep.search, sweep.over["learner.lr"]) == (3, "random", [1e-3, 1e-2])


def test_a_range_can_be_given_by_flags_and_one_end_of_it_changed(read):
    sweep = read(RANGES, "--sweep.over.learner.lr.high", "1e-2").sweep
    assert sweep.over["learner.lr"] == Span(low=1e-5, high=1e-2, log=True)
    ends = ("--sweep.over.learner.weight-decay.low", "1e-3", "--sweep.over.learner.weight-decay.high", "0.1")
    sweep = read(RANGES, *ends, "--sweep.over.learner.weight-decay.log").sweep
    assert sweep.over["learner.weight_decay"] == Span(low=1e-3, high=0.1, log=True)


@pytest.mark.parametrize(
    ("text", "flags", "message"),
    [
        (
            "[sweep.over]\nlearner.lrr = [1]",
            (),
            "s.toml: sweep.over.learner.lrr = [1]: unknown setting learner.lrr; did you mean learner.lr?",
        ),
        (
            "[sweep.over]\nzzz = [1]",
            (),
            "s.toml: sweep.over.zzz = [1]: unknown setting zzz; `rayqd distill --help` lists every setting",
        ),
        (
            "[sweep.over]\nlearner = [1]",
            (),
            "s.toml: sweep.over.learner = [1]: learner is a section; name a setting in it",
        ),
        (
            "[sweep.over]\nlearner.lr = 1e-3",
            (),
            "s.toml: sweep.over.learner.lr = 0.001: must be a list of values, or a range "
            "{low = NUMBER, high = NUMBER, log = true}",
        ),
        (
            "[sweep.over]\nlearner.lr = {low = 1e-3}",
            (),
            "s.toml: sweep.over.learner.lr.low = 0.001: must be a list of values, or a range "
            "{low = NUMBER, high = NUMBER, log = true}",
        ),
        (
            "[sweep.over]\nlearner.lr = {low = 1e-3, high = 1e-5}",
            (),
            "s.toml: sweep.over.learner.lr.high = 1e-05: low = 0.001 must be below high = 1e-05",
        ),
        (
            "[sweep.over]\ndistill.beta = {low = 0, high = 1, log = true}",
            (),
            "s.toml: sweep.over.distill.beta.log = true: low = 0 must be above 0 where log = true",
        ),
        (
            "[sweep.over]\nadapter.rank = {low = 4.5, high = 64}",
            (),
            "s.toml: sweep.over.adapter.rank.high = 64: low = 4.5 and high = 64 must be whole numbers where "
            "integer = true",
        ),
        ("[sweep.over]\nlearner.lr = []", (), "s.toml: sweep.over.learner.lr = []: the list is empty"),
        (
            "[sweep.over]\nlearner.lr = [1, 1]",
            (),
            "s.toml: sweep.over.learner.lr = [1, 1]: the list names a value twice",
        ),
        (
            "[sweep]\nsearch = 'random'\n[sweep.over]\nmodel.dtype = {low = 1, high = 2}",
            (),
            "s.toml: sweep.over.model.dtype.high = 2: model.dtype is no number: give a list of values",
        ),
        (
            "[sweep.over]\nlearner.lr = {low = 1e-5, high = 1e-3}",
            (),
            "s.toml: sweep.over.learner.lr.high = 0.001: a grid takes lists; give one, or set "
            'sweep.search = "random" or "optuna"',
        ),
        (
            LISTS,
            ("--sweep.num-trials", "3"),
            "sweep.num_trials=3: a grid tries every combination; leave it out, or search at random",
        ),
        (
            "",
            (),
            "a sweep needs settings to try: [sweep.over] in its file, or --sweep.over.learner.lr 1e-4,3e-4",
        ),
        (
            LISTS,
            ("--sweep.search", "gird"),
            "flag --sweep.search=gird: must be one of grid, random, optuna; did you mean grid?",
        ),
        (
            LISTS,
            ("--sweep.sheduler", "asha"),
            "flag --sweep.sheduler=asha: unknown setting sweep.sheduler; did you mean sweep.scheduler?",
        ),
        (
            "[sweep.over]\nseed = [1, 2]",
            (),
            "s.toml: sweep.over.seed = [1, 2]: seed changes which rows are held out, and all trials must be measured "
            "on the same rows: name an eval.source",
        ),
        (
            "[sweep.over]\neval.num_rows = [1, 2]",
            (),
            "s.toml: sweep.over.eval.num_rows = [1, 2]: eval.num_rows cannot be swept: all trials must be measured on "
            "the same rows",
        ),
        (
            "[sweep]\nscheduler = 'asha'\n[sweep.over]\nlearner.steps = [10, 20]",
            (),
            "s.toml: sweep.over.learner.steps = [10, 20]: asha compares trials of one length; "
            'set sweep.scheduler = "none"',
        ),
        (f"learner.lr = 0\n{LISTS}", (), "s.toml: learner.lr = 0: must be a number above 0"),
        (LISTS, ("a.toml",), 'unexpected argument "a.toml"; a file of settings is given as @a.toml'),
    ],
)
def test_what_is_wrong_with_a_sweep_is_one_line(error, text, flags, message):
    assert error(text, *flags) == message


def test_seeds_can_be_swept_where_they_do_not_change_what_is_held_out(read):
    assert read("eval.source = 'x.jsonl'\n[sweep.over]\nseed = [1, 2]").sweep.over == {"seed": [1, 2]}


def test_none_is_a_value_of_a_setting_that_may_be_unset(read):
    config = read(LISTS, "--sweep.over.adapter.alpha", "none,16")
    assert config.sweep.over["adapter.alpha"] == ["none", 16.0]
    assert config.config({"adapter.alpha": "none"}).adapter.alpha is None


def test_a_sweep_file_is_no_run_and_says_so(read):
    read(LISTS)
    with pytest.raises(ConfigError, match="the section \\[sweep\\] is for `rayqd sweep`"):
        load_config(["@s.toml"])


@pytest.mark.parametrize(
    "text", [LISTS, RANGES, "[sweep]\nscheduler = 'asha'\n[sweep.over]\nquant.ignore = [[], ['a']]"]
)
def test_what_is_written_down_reads_back_to_the_same_sweep(read, text):
    first = read(text)
    again = read(to_toml(first.config()) + sweep_toml(first.sweep))
    assert again.sweep == first.sweep
    assert again.config() == first.config()


def test_two_sweeps_are_told_apart_by_what_makes_other_trials():
    old = SweepConfig(
        over={"learner.lr": [1e-4], "distill.beta": [0, 1]}, search="random", num_trials=4, max_concurrent=1
    )
    new = SweepConfig(over={"learner.lr": [1e-4, 1e-3], "distill.lmbda": [0]}, search="random", num_trials=8)
    assert sweep_differences(old, new) == [
        "sweep.num_trials: 4 -> 8",
        "sweep.over.learner.lr: [0.0001] -> [0.0001, 0.001]",
        "sweep.over.distill.beta: [0, 1] -> not there",
        "sweep.over.distill.lmbda: not there -> [0]",
    ]


def test_the_help_names_every_setting_of_the_section():
    for name in SweepConfig.model_fields:
        assert f"--sweep.{name}" in sweep_help()
