"""A comparison's file: arms get the settings of their kinds and their own, and what cannot be is said in a line."""

from pathlib import Path

import pytest

from rayqd.config.comparison import ComparisonSpec, load_comparison
from rayqd.errors import ConfigError

CONFIGS = Path(__file__).parents[2] / "configs"
BASE = 'model.name = "m"\ndata.source = "quickstart"\neval.source = "quickstart"\n'


def load(tmp_path: Path, text: str, *flags: str) -> ComparisonSpec:
    (tmp_path / "c.toml").write_text(text)
    return load_comparison([f"@{tmp_path / 'c.toml'}", *flags])


def refusal(tmp_path: Path, text: str, *flags: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, text, *flags)
    return str(caught.value).replace(f"{tmp_path}/", "")


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("compare*.toml")), ids=lambda path: path.name)
def test_every_comparison_in_the_repository_loads(path: Path) -> None:
    spec = load_comparison([f"@{path}"])
    assert [arm.name for arm in spec.arms] == ["rtn", "gptq", "off-policy", "mixed", "on-policy"]


def arms(lines: str, compare: str = "") -> str:
    return f"{BASE}[compare]\n{compare}\n[compare.arms]\n{lines}\n"


def test_an_arm_has_the_settings_of_its_kind_and_its_own(tmp_path: Path) -> None:
    spec = load(
        tmp_path,
        arms('off-policy = {}\non-policy = {}\nhalf = {kind = "mixed", learner.lr = 2e-4}\nx = {kind = "distill"}'),
        "--distill.lmbda",
        "0.25",
    )
    assert [arm.name for arm in spec.arms] == ["rtn", "off-policy", "on-policy", "half", "x"]
    configs = {arm.name: spec.config(arm) for arm in spec.arms}
    assert [configs[name].distill.lmbda for name in ("off-policy", "on-policy", "half", "x")] == [0.0, 1.0, 0.5, 0.25]
    assert configs["half"].learner.lr == 2e-4
    assert configs["x"].learner.lr == configs["on-policy"].learner.lr == spec.config().learner.lr
    assert configs["rtn"].quant.method == "rtn"
    assert spec.reference.name == "off-policy"


def test_an_arm_without_rollouts_asks_the_learner_where_the_others_ask_an_engine(tmp_path: Path) -> None:
    text = arms('off-policy = {}\non-policy = {}\nown = {kind = "off-policy", learner.lr = 2e-4}')
    text = text.replace("[compare]", 'eval.every = 5\neval.tasks = ["first"]\neval.where = "rollout"\n[compare]')
    spec = load(tmp_path, text)
    where = {arm.name: spec.config(arm).eval.where for arm in spec.arms}
    assert where == {"rtn": "rollout", "off-policy": "learner", "on-policy": "rollout", "own": "learner"}


def test_a_model_made_elsewhere_has_a_path_and_what_all_arms_share(tmp_path: Path) -> None:
    spec = load(tmp_path, arms('autoround = {kind = "model", path = "out/w4"}', 'against = "autoround"'))
    rounded, given = spec.arms
    assert (given.path, given.settings, given.command, given.trains) == ("out/w4", {}, "eval", False)
    assert spec.config(given) == spec.config()
    assert spec.reference is given
    assert not rounded.is_made_elsewhere


def test_flags_win_over_the_file(tmp_path: Path) -> None:
    text = arms("on-policy = {}", 'seeds = [1]\nbudget = "tokens"\namount = 5')
    spec = load(tmp_path, text, "--compare.seeds", "3,4,5", "--compare.budget=steps", "--compare.amount", "32")
    assert (spec.compare.seeds, spec.compare.budget, spec.compare.amount) == ([3, 4, 5], "steps", 32)


def test_a_second_file_changes_a_setting_of_an_arm(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text(arms("on-policy = {learner.lr = 1e-4}"))
    (tmp_path / "b.toml").write_text("[compare.arms.on-policy]\nlearner.lr = 3e-4\n")
    spec = load_comparison([f"@{tmp_path}/a.toml", f"@{tmp_path}/b.toml"])
    assert spec.config(spec.arms[-1]).learner.lr == 3e-4


@pytest.mark.parametrize(
    ("text", "error"),
    [
        (
            arms("on-polcy = {}"),
            "c.toml: compare.arms.on-polcy = {}: unknown kind of arm on-polcy; did you mean on-policy? an arm called "
            "on-polcy needs a kind: there are teacher, rtn, gptq, awq, autoround, off-policy, mixed, on-policy, "
            "distill (any settings), model (a path)",
        ),
        (
            arms('fast = {kind = "qptq"}'),
            'c.toml: compare.arms.fast.kind = "qptq": unknown kind of arm qptq; did you mean gptq? there are teacher, '
            "rtn, gptq, awq, autoround, off-policy, mixed, on-policy, distill (any settings), model (a path)",
        ),
        (
            arms("on-policy = {distill.lmbda = 0.3}"),
            "compare.arms.on-policy.distill.lmbda = 0.3: the kind on-policy sets distill.lmbda = 1.0 already; leave it "
            "out, or write another kind",
        ),
        (
            arms("on-policy = {learner.steps = 5}"),
            "compare.arms.on-policy.learner.steps = 5: compare.budget and compare.amount say how long every arm trains",
        ),
        (
            arms("gptq = {learner.lr = 1e-4}"),
            "compare.arms.gptq.learner.lr = 0.0001: rayqd quantize, which makes arms of the kind gptq, does not read "
            "learner.lr",
        ),
        (
            arms("on-policy = {learner.lrr = 1e-4}"),
            "compare.arms.on-policy.learner.lrr = 0.0001: unknown setting learner.lrr; did you mean learner.lr?",
        ),
        (
            arms("on-policy = {eval.num_rows = 3}"),
            "compare.arms.on-policy.eval.num_rows = 3: eval.num_rows must be the same for all arms: all arms must be "
            "measured on the same rows",
        ),
        (
            arms("on-policy = 3"),
            "c.toml: compare.arms.on-policy = 3: must be a table of settings: on-policy = {kind = ",
        ),
        (arms("on-policy = {learner.lr = -1}"), "compare.arms.on-policy.learner.lr = -1: must be a number above 0"),
        (arms(""), "a comparison needs arms: [compare.arms] in its file, each a line as on-policy = {}"),
        (arms("teacher = {}"), "a comparison needs two arms beside the teacher"),
        (
            arms("on-policy = {}", 'budget = "tokens"'),
            "compare.budget = tokens: needs compare.amount, how much of it each arm has",
        ),
        (arms("on-policy = {}", "amount = 2.5"), "compare.amount = 2.5: must be a whole number of steps"),
        (
            arms("on-policy = {}", 'budget = "wallclock"\namount = 5'),
            'c.toml: compare.budget = "wallclock": must be one of steps, tokens, accelerator-seconds, wall-clock; did '
            "you mean wall-clock?",
        ),
        (
            arms("on-policy = {}\noff-policy = {}", 'against = "of-policy"'),
            "compare.against = of-policy: no arm has that name; did you mean off-policy?",
        ),
        (
            arms("on-policy = {}", "seed = [1]"),
            "c.toml: compare.seed = [1]: unknown setting compare.seed; did you mean",
        ),
        (
            arms("mine = {path = 'out'}"),
            'c.toml: compare.arms.mine.path = "out": an arm called mine needs a kind: of one with a path it '
            'is kind = "model"',
        ),
        (
            arms('autoround = {kind = "model"}'),
            'c.toml: compare.arms.autoround.kind = "model": a model needs its directory, or its name on the hub: ',
        ),
        (arms('x = {kind = "model", path = 3}'), "c.toml: compare.arms.x.path = 3: a model needs its directory"),
        (
            arms('x = {kind = "model", path = "out", quant.method = "gptq"}'),
            'compare.arms.x.quant.method = "gptq": a model is measured as it is, with the settings that all arms '
            "share; it has a path alone",
        ),
        (
            arms('on-policy = {path = "out"}'),
            'compare.arms.on-policy.path = "out": goes with kind = "model" alone',
        ),
        (
            arms('figures = {kind = "model", path = "out"}'),
            'c.toml: compare.arms.figures.kind = "model": the comparison\'s own files are called figures; take another',
        ),
        (arms("on-policy = {}", "seeds = [1, 1]"), "compare.seeds = [1, 1]: must be different whole numbers"),
        (
            arms("on-policy = {}").replace('eval.source = "quickstart"\n', ""),
            "compare.seeds = [0, 1]: seed changes which rows are held out, and all arms must be measured on the same "
            "rows: name an eval.source",
        ),
    ],
)
def test_what_cannot_be_is_said_in_a_line(tmp_path: Path, text: str, error: str) -> None:
    assert refusal(tmp_path, text).startswith(error)


def test_arms_do_not_stand_on_the_command_line(tmp_path: Path) -> None:
    text = refusal(tmp_path, arms("on-policy = {}"), "--compare.arms.on-policy.learner.lr", "1")
    assert text.endswith("arms stand in a file: [compare.arms]")


def test_one_seed_needs_no_rows_of_their_own(tmp_path: Path) -> None:
    text = arms("on-policy = {}", "seeds = [7]").replace('eval.source = "quickstart"\n', "")
    assert load(tmp_path, text).compare.seeds == [7]
