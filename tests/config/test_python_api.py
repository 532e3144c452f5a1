"""What is wrong with settings given in Python is the same line as on the command line."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

import rayqd
from rayqd.config import Config, load_config
from rayqd.config.sections import AdapterConfig, LearnerConfig, QuantConfig, RayConfig, TeacherConfig
from rayqd.errors import ConfigError, RayqdError


def said_by(call: Any) -> str:
    with pytest.raises(RayqdError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


BAD: list[tuple[dict[str, Any], str]] = [
    ({"learner": {"lr": -1}}, "[learner]\nlr = -1"),
    ({"learner": {"lr": True}}, "[learner]\nlr = true"),
    ({"learner": {"lr": math.nan}}, "[learner]\nlr = nan"),
    ({"learner": {"lr": math.inf}}, "[learner]\nlr = inf"),
    ({"learner": {"steps": "24"}}, "[learner]\nsteps = '24'"),
    ({"learner": {"steps": 24.0}}, "[learner]\nsteps = 24.0"),
    ({"learner": {"lrr": 1}}, "[learner]\nlrr = 1"),
    ({"learner": {"learning_rate": 1}}, "[learner]\nlearning_rate = 1"),
    ({"lerner": {"lr": 1}}, "[lerner]\nlr = 1"),
    ({"learning_rate": 1}, "learning_rate = 1"),
    ({"name": "a b"}, "name = 'a b'"),
    ({"storage": "bucket"}, "storage = 'bucket'"),
    ({"quant": {"format": "int3"}}, "[quant]\nformat = 'int3'"),
    ({"quant": {"format": "nvfp4", "group_size": 32}}, "[quant]\nformat = 'nvfp4'\ngroup_size = 32"),
    ({"adapter": {"targets": "q_proj"}}, "[adapter]\ntargets = 'q_proj'"),
    (
        {"rollout": {"min_new_tokens": 16, "max_new_tokens": 8}},
        "[rollout]\nmin_new_tokens = 16\nmax_new_tokens = 8",
    ),
    ({"data": {"columns": {"promt": "x"}}}, "[data]\ncolumns = {promt = 'x'}"),
    ({"distill": {"loss": "skew_kl", "beta": 1.0}}, "[distill]\nloss = 'skew_kl'\nbeta = 1.0"),
    ({"model": "x"}, "model = 'x'"),
    ({"ray": {"learner_labels": ["a"]}}, "[ray]\nlearner_labels = ['a']"),
]


@pytest.mark.parametrize(("fields", "toml"), BAD, ids=[toml.replace("\n", " ") for _, toml in BAD])
def test_python_and_a_file_are_refused_in_the_same_words(fields: dict[str, Any], toml: str, tmp_path: Path) -> None:
    file = tmp_path / "a.toml"
    file.write_text(toml)
    from_file = said_by(lambda: load_config([f"@{file}"]))
    assert said_by(lambda: Config(**fields)) == from_file.removeprefix(f"{file}: ")


def test_a_section_by_itself_says_which_it_is() -> None:
    assert said_by(lambda: LearnerConfig(lr=-1)) == "learner.lr = -1: must be a number above 0"
    assert said_by(lambda: QuantConfig(format="int3")).startswith('quant.format = "int3": must be one of int4')
    assert said_by(lambda: AdapterConfig(lora_r=8)).endswith("rayqd's name for it is adapter.rank")


def test_what_strict_files_take_only_in_one_form_python_may_give_in_its_own() -> None:
    config = Config(runs_dir="elsewhere", adapter={"targets": ("q_proj",)}, quant=QuantConfig(group_size=64))
    assert (config.runs_dir, config.adapter.targets, config.quant.group_size) == (Path("elsewhere"), ["q_proj"], 64)
    assert TeacherConfig(cache_dir="x").cache_dir == Path("x")
    assert RayConfig(cluster_file=Path("c.yaml")).cluster_file == Path("c.yaml")
    assert LearnerConfig(lr=1).lr == 1.0


def test_what_is_no_config_is_refused_before_anything_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    wrong: Any = {"name": "x"}
    with pytest.raises(ConfigError, match="the settings must be a Config, got dict"):
        rayqd.distill(wrong)
    assert list(tmp_path.iterdir()) == []
