"""Writing a Config down and reading it back; telling two apart."""

import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import settings as property_settings
from hypothesis import strategies as st

from rayqd.config import Config, differences, load_config, to_toml
from rayqd.config.resolved import with_absolute_paths, with_values
from rayqd.config.settings import settings, value_text

QUICKSTART = Path(__file__).parents[2] / "configs" / "quickstart.toml"


def reread(config: Config, folder: Path) -> Config:
    (folder / "config.toml").write_text(to_toml(config))
    return load_config([f"@{folder}/config.toml"])


@pytest.mark.parametrize(
    "parts",
    [
        [],
        [f"@{QUICKSTART}"],
        ["--adapter.alpha", "0.1", "--model.name", 'a"b\\c\tü', "--quant.ignore", "[]", "--ray.dashboard"],
        ["--learner.lr", "1e-300", "--runs-dir", "/tmp/a b", "--teacher.name", "x", "--seed", str(2**62)],
    ],
)
def test_the_resolved_toml_reads_back_to_the_same_config(parts, tmp_path):
    config = load_config(parts)
    assert reread(config, tmp_path) == config


def test_the_resolved_toml_names_every_setting_that_is_set():
    tables = tomllib.loads(to_toml(Config()))
    written = {key for key, value in tables.items() if not isinstance(value, dict)}
    written |= {f"{name}.{key}" for name, table in tables.items() if isinstance(table, dict) for key in table}
    assert set(settings()) - written == {
        "adapter.alpha", "checkpoint.best", "data.chat_template", "data.date", "data.filter", "data.reader",
        "data.subset",
        "eval.num_fewshot", "eval.source", "eval.subset", "eval.task_limit",
        "eval.task_max_new_tokens", "eval.tasks_every", "eval.think_end",
        "eval.stride", "eval.tasks_dir", "eval.text", "eval.text_subset", "eval.text_tokens", "eval.window",
        "model.revision",
        "ray.address", "ray.cluster_file", "rollout.gpu_memory_utilization", "storage", "teacher.cache_dir",
        "teacher.column", "teacher.name", "teacher.prefetch_steps",
    }  # fmt: skip


SCALARS = (
    st.booleans() | st.integers(-(2**62), 2**62) | st.floats(allow_nan=False) | st.text(st.characters(codec="utf-8"))
)


@property_settings(deadline=None)
@given(SCALARS | st.lists(SCALARS, max_size=3))
def test_written_values_are_what_a_toml_parser_reads(value):
    assert tomllib.loads(f"key = {value_text(value)}")["key"] == value


def test_equal_configs_do_not_differ():
    assert differences(Config(), Config()) == []


def test_a_setting_that_a_run_was_made_before_is_its_default(tmp_path):
    written = to_toml(Config())
    assert 'loss = "jsd"\n' in written
    file = tmp_path / "config.toml"
    file.write_text(written.replace('loss = "jsd"\n', ""))
    assert differences(load_config([f"@{file}"]), Config()) == []
    assert differences(load_config([f"@{file}"]), load_config(["--distill.loss=total_variation"])) == [
        'distill.loss: "jsd" -> "total_variation"'
    ]


def test_differences_are_written_as_settings():
    old = load_config(["--learner.lr", "1e-3", "--data.source", "a"])
    new = load_config(["--learner.lr", "5e-4", "--adapter.alpha", "8", "--data.source", "b"])
    assert differences(old, new) == [
        "adapter.alpha: none -> 8.0",
        'data.source: "a" -> "b"',
        "learner.lr: 0.001 -> 0.0005",
    ]


def test_where_and_how_fast_a_run_goes_is_no_difference():
    faster = [
        "--runs-dir=x", "--ray.address=auto", "--ray.dashboard", "--checkpoint.every=1", "--rollout.num-workers=2",
        "--rollout.max-concurrent=2", "--rollout.gpu-memory-utilization=0.5", "--teacher.num-workers=2",
        "--teacher.max-batch-tokens=2", "--learner.num-workers=2", "--learner.microbatch-tokens=2",
        "--learner.gradient-checkpointing", "--eval.every=5",
    ]  # fmt: skip
    assert differences(Config(), load_config(faster)) == []


def test_values_are_put_in_place_by_dotted_key():
    config = with_values(Config(), {"seed": 1, "learner.lr": 1e-3, "learner.steps": 7, "eval.every": 2})
    assert config == load_config(["--seed=1", "--learner.lr=1e-3", "--learner.steps=7", "--eval.every=2"])


def test_paths_that_are_there_become_absolute_and_other_names_stay(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").mkdir()
    (tmp_path / "rows.jsonl").touch()
    given = ["model.name=model", "teacher.name=owner/model", "data.source=rows.jsonl", "eval.source=model"]
    given += ["teacher.cache_dir=scores", "eval.tasks_dir=~/tasks", "ray.cluster_file=cluster.yaml", "storage=kept/"]
    config = with_absolute_paths(load_config([f"--{each}" for each in given]))
    assert config.model.name == str(tmp_path / "model")
    assert config.teacher.name == "owner/model"
    assert config.data.source == str(tmp_path / "rows.jsonl")
    assert config.eval.source == "model"  # a directory is no data set
    assert config.teacher.cache_dir == tmp_path / "scores"
    assert config.eval.tasks_dir == Path.home() / "tasks"
    assert config.ray.cluster_file == Path("cluster.yaml")
    assert (config.runs_dir, config.storage) == (tmp_path / "runs", str(tmp_path / "kept"))
    assert with_absolute_paths(load_config(["--storage=s3://bucket/runs"])).storage == "s3://bucket/runs"
