"""Precedence, the forms of an argument, and one line for each thing that can be wrong."""

from pathlib import Path

import pytest

from rayqd.config import Config, load_config
from rayqd.errors import ConfigError

CONFIGS = Path(__file__).parents[2] / "configs"


def error(*parts: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(parts)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def write(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def write_file(name: str, text: str) -> str:
        Path(name).write_text(text)
        return f"@{name}"

    return write_file


@pytest.mark.parametrize(
    "path",
    [path for path in sorted(CONFIGS.glob("**/*.toml")) if "\n[compare]" not in path.read_text()],
    ids=lambda path: path.name,
)
def test_every_config_in_the_repository_loads(path):
    assert load_config([f"@{path}"]) != Config()


def test_nothing_given_is_the_defaults():
    assert load_config([]) == Config()


def test_a_later_file_wins_over_an_earlier_one_and_keeps_what_it_does_not_name(write):
    first = write("a.toml", "seed = 1\n[learner]\nlr = 1e-3\nsteps = 7")
    second = write("b.toml", "[learner]\nlr = 2e-3")
    config = load_config([first, second])
    assert (config.seed, config.learner.lr, config.learner.steps) == (1, 2e-3, 7)


def test_a_flag_wins_over_a_file_that_stands_after_it(write):
    assert load_config(["--learner.lr", "3e-3", write("a.toml", "learner.lr = 1e-3")]).learner.lr == 3e-3


def test_a_later_flag_wins_over_an_earlier_one():
    assert load_config(["--seed", "1", "--seed=2"]).seed == 2


def test_a_file_may_stand_apart_from_its_at_sign(write):
    name = write("a.toml", "seed = 9").removeprefix("@")
    assert load_config(["@", name]) == load_config([f"@{name}"]) == Config(seed=9)


@pytest.mark.parametrize(
    "parts",
    [("--quant.group-size", "64"), ("--quant.group_size=64",), ("--quant.group-size=64",)],
)
def test_flag_forms_are_alike(parts):
    assert load_config(parts).quant.group_size == 64


@pytest.mark.parametrize(
    ("parts", "value"),
    [
        (["--ray.dashboard"], True),
        (["--ray.dashboard", "--seed", "1"], True),
        (["--ray.dashboard", "false"], False),
        (["--ray.dashboard=true"], True),
        (["--ray.dashboard", "--no-ray.dashboard"], False),
    ],
)
def test_switches(parts, value):
    assert load_config(parts).ray.dashboard is value


@pytest.mark.parametrize("text", ["q_proj,v_proj", "q_proj, v_proj", '["q_proj", "v_proj"]'])
def test_lists_are_json_or_separated_by_commas(text):
    assert load_config(["--adapter.targets", text]).adapter.targets == ["q_proj", "v_proj"]


def test_none_unsets_what_a_file_set_from_flag_and_from_file(write):
    first = write("a.toml", "adapter.alpha = 16\nmodel.revision = 'main'")
    second = write("b.toml", "model.revision = 'none'")
    config = load_config([first, second, "--adapter.alpha", "none"])
    assert (config.adapter.alpha, config.model.revision) == (None, None)


def test_none_is_a_plain_word_where_a_setting_must_be_set():
    assert load_config(["--adapter.kind", "none"]).adapter.kind == "none"
    assert error("--learner.lr", "none") == "flag --learner.lr=none: must be a number above 0"


def test_a_whole_number_does_where_a_number_is_wanted(write):
    assert load_config([write("a.toml", "learner.weight_decay = 1")]).learner.weight_decay == 1.0


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        (["--learner.lrr", "1"], "flag --learner.lrr=1: unknown setting learner.lrr; did you mean learner.lr?"),
        (["--group-size", "64"], "flag --group_size=64: unknown setting group_size; did you mean quant.group_size?"),
        (["--model.beta", "1"], "flag --model.beta=1: unknown setting model.beta; did you mean distill.beta?"),
        (
            ["--quant.zzz", "4"],
            "flag --quant.zzz=4: unknown setting quant.zzz; "
            "there are quant.format, quant.group_size, quant.rule, quant.double_quant, quant.head, quant.method, "
            "quant.init, quant.calibration_tokens, quant.rounding_steps, quant.act_order, quant.damping, "
            "quant.ignore",
        ),
        (["--zzz", "1"], "flag --zzz=1: unknown setting zzz; `rayqd distill --help` lists every setting"),
        (
            ["--model", "x"],
            "flag --model=x: is a section; set model.name, model.revision, model.trust_remote_code, model.dtype, "
            "model.compile",
        ),
        (["--distill.beta", "1.5"], "flag --distill.beta=1.5: must be a number from 0 to 1"),
        (["--quant.group-size", "4"], "flag --quant.group_size=4: must be a whole number of at least 8"),
        (["--learner.steps", "1e3"], "flag --learner.steps=1e3: must be a whole number of at least 1"),
        (["--learner.lr=nan"], "flag --learner.lr=nan: must be a number above 0"),
        (["--learner.lr=inf"], "flag --learner.lr=inf: must be a number above 0"),
        (
            ["--quant.rule", "sign"],
            "flag --quant.rule=sign: must be one of signed, absmax, asymmetric, searched; did you mean signed?",
        ),
        (["--ray.dashboard=maybe"], "flag --ray.dashboard=maybe: must be true or false"),
        (["--adapter.targets", "[1, 2]"], "flag --adapter.targets=[1, 2]: must be a list of names"),
        (["--adapter.targets", "[q"], "flag --adapter.targets=[q: must be a list of names"),
        (
            ["--name", "a\nb"],
            'flag --name="a\\nb": must be text of the form '
            "^[A-Za-z0-9][A-Za-z0-9._=-]*(/[A-Za-z0-9][A-Za-z0-9._=-]*)?$",
        ),
        (["--learner.lr"], "flag --learner.lr: needs a value: a number above 0"),
        (["--learner.lr", "--seed", "1"], "flag --learner.lr: needs a value: a number above 0"),
        (
            ["--no-learner.lr"],
            "flag --no-learner.lr: must be --learner.lr VALUE; --no- turns off a switch and takes no value",
        ),
        (["a.toml"], 'unexpected argument "a.toml"; a file of settings is given as @a.toml'),
        (["-x"], 'unexpected argument "-x"; settings are given as --section.field VALUE'),
        (["@"], "@ needs the name of a TOML file after it: @configs/quickstart.toml"),
        (
            ["--rollout.min-new-tokens", "16", "--rollout.max-new-tokens", "8"],
            "flag --rollout.max_new_tokens=8: min_new_tokens=16 is above max_new_tokens=8",
        ),
        (
            ["--rollout.top_p", "most"],
            "flag --rollout.top_p=most: must be a number above 0 and at most 1, or model",
        ),
        (
            ["--data.columns", "promt=question"],
            "flag --data.columns=promt=question: promt must be one of messages, prompt, input, completion, chosen, "
            "text, system, tools; did you mean prompt?",
        ),
        (["--data.columns", "question"], "flag --data.columns=question: must be NAME=VALUE,..."),
        (
            ["--data.chat_template_kwargs", "tools=3"],
            "flag --data.chat_template_kwargs=tools=3: tools is set by rayqd: leave it out",
        ),
        (
            ["--data.date", "today"],
            "flag --data.date=today: today is no date: write 2026-01-31 or 2026-01-31T12:00:00",
        ),
        (
            ["--rollout.stop", '["", "x"]'],
            'flag --rollout.stop=["", "x"]: an empty text would end every completion at once: leave it out',
        ),
    ],
)
def test_what_is_wrong_with_a_flag_is_one_line(parts, message):
    assert error(*parts) == message


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("learner.steps = '24'", 'a.toml: learner.steps = "24": must be a whole number of at least 1'),
        ("learner.steps = 24.0", "a.toml: learner.steps = 24.0: must be a whole number of at least 1"),
        ("learner.steps = true", "a.toml: learner.steps = true: must be a whole number of at least 1"),
        ("model.name = 2026-01-01", 'a.toml: model.name = "2026-01-01": must be text'),
        ("runs_dir = 3", "a.toml: runs_dir = 3: must be a path"),
        ("adapter.targets = 'q_proj'", 'a.toml: adapter.targets = "q_proj": must be a list of names'),
        ("[learner.lr]", "a.toml: learner.lr = {}: must be a number above 0"),
        ("[lerner]\nlr = 1", "a.toml: lerner.lr = 1: unknown setting lerner.lr; did you mean learner.lr?"),
        (
            "model = 'x'",
            'a.toml: model = "x": is a section; set model.name, model.revision, model.trust_remote_code, model.dtype, '
            "model.compile",
        ),
        ("seed = 1\nseed 2", "a.toml:2: is not TOML: expected '=' after a key in a key/value pair"),
        ("seed = 1\nname = '", 'a.toml:2: is not TOML: expected "\'"'),
    ],
)
def test_what_is_wrong_with_a_file_is_one_line(write, text, message):
    assert error(write("a.toml", text)) == message


def test_of_several_errors_the_first_is_told_and_the_rest_counted(write):
    path = write("a.toml", "learner.steps = 0\ndistill.beta = 2")
    assert error(path, "--lrr", "1") == "flag --lrr=1: unknown setting lrr; did you mean learner.lr? (and 2 more)"


def test_a_wrong_value_that_a_later_one_replaces_is_no_error(write):
    assert load_config([write("a.toml", "learner.steps = 0"), "--learner.steps", "5"]).learner.steps == 5


def test_a_missing_file_is_named_with_its_near_neighbours(write):
    write("quickstart.toml", "")
    assert error("@quikstart.toml") == "quikstart.toml: does not exist; did you mean quickstart.toml?"
    assert error("@zzz.toml").startswith("zzz.toml: does not exist")
    assert error("@no/a.toml") == "no/a.toml: does not exist, nor does the folder no"


def test_a_folder_and_a_file_that_is_no_text_are_refused(tmp_path):
    assert error(f"@{tmp_path}") == f"{tmp_path}: cannot be read: Is a directory"
    (tmp_path / "a.toml").write_bytes(b"seed = 1\nname = '\xff'")
    assert error(f"@{tmp_path}/a.toml") == f"{tmp_path}/a.toml:2: is not UTF-8 text, which TOML must be"


@pytest.mark.parametrize(
    "place", ["s3://bucket/runs", "gs://b", "file:///mnt/runs", "/mnt/runs", "./runs", "a/b", "~/x"]
)
def test_storage_is_a_uri_or_a_path(place):
    assert load_config([f"--storage={place}"]).storage == place


@pytest.mark.parametrize("place", ["s3:/bucket/runs", "bucket", "s3://"])
def test_storage_that_is_no_place_says_what_is_one(place):
    assert error(f"--storage={place}") == (
        f"flag --storage={place}: storage={place} is no place: write s3://bucket/folder, gs://bucket/folder or /a/path"
    )


def test_storage_with_a_password_is_refused_without_saying_it_twice():
    line = error("--storage", "s3://me:secret@bucket/runs")
    assert line.endswith("storage has a password in it, which config.toml would show: leave it to the environment")
