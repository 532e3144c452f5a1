"""What a model card says, and what it keeps to itself."""

from __future__ import annotations

import shlex
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from rayqd.config import Config, load_config
from rayqd.events import Arm, ArmResult
from rayqd.export.model_card import make_model_card, write_card
from tests.example_events import fidelity


def row(arm: str, *, kl: float, perplexity: float, bits: float, size: int) -> ArmResult:
    measured = fidelity(kl, perplexity=perplexity, num_tokens=6011)
    return ArmResult(arm=Arm.from_name(arm), fidelity=measured, bits_per_weight=bits, size_bytes=size)


ROWS = [
    row("teacher", kl=0.0, perplexity=18.457, bits=16, size=269_100_000),
    row("distilled INT4", kl=0.15342, perplexity=19.8, bits=4.25, size=116_700_000),
]


def make(**sections: Any) -> Config:
    return Config.model_validate({"model": {"name": "org/base-model"}, **sections})


def front_matter(card: str) -> dict[str, Any]:
    _, block, _ = card.split("---\n", 2)
    return yaml.safe_load(block)


def test_front_matter_names_base_model_and_data() -> None:
    card = make_model_card(make(data={"source": "org/rows"}), kind="compressed-tensors")
    assert front_matter(card) == {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "base_model": "org/base-model",
        "base_model_relation": "quantized",
        "datasets": ["org/rows"],
        "tags": ["rayqd", "int4", "compressed-tensors", "distillation", "qat"],
    }


def test_model_that_comes_with_a_package_is_named_by_its_hub_id() -> None:
    card = make_model_card(make(model={"name": "smollm2-135m"}), kind="gguf")
    assert front_matter(card)["base_model"] == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert front_matter(card)["library_name"] == "gguf"
    assert "# SmolLM2-135M-Instruct in INT4" in card
    assert "llama-server -m model-Q4_0.gguf" in card


def test_recipe_is_the_settings_that_differ_and_the_command_gives_them_back() -> None:
    config = make(
        quant={"group_size": 64, "init": "awq", "ignore": ["lm_head", "down_proj"]},
        learner={"lr": 1e-3, "steps": 24},
        data={"source": "org/it's rows", "columns": {"prompt": "q=a,b"}, "chat_template_kwargs": {"thinking": False}},
        teacher={"column": "subject", "route": {"it's": "org/a", "*": "org/b"}},
    )
    card = make_model_card(config, kind="compressed-tensors")
    recipe = tomllib.loads(card.split("```toml\n")[1].split("```")[0])
    assert recipe["quant"] == {"group_size": 64, "init": "awq", "ignore": ["lm_head", "down_proj"]}
    assert recipe["learner"] == {"lr": 0.001, "steps": 24}
    command = card.split("## Reproduce\n\n```bash\n")[1].split("\n```")[0]
    words = shlex.split(command.replace("\\\n", ""))  # as a shell joins lines
    assert words[:2] == ["rayqd", "distill"]
    assert load_config(words[2:]) == config


def test_places_on_the_makers_machine_are_not_told(tmp_path: Path) -> None:
    secret = tmp_path / "somebody"
    secret.mkdir()
    (secret / "rows.jsonl").write_text("")
    config = make(
        runs_dir=secret, model={"name": str(secret / "my-model")}, data={"source": str(secret / "rows.jsonl")}
    )
    card = make_model_card(config, kind="compressed-tensors")
    assert "somebody" not in card
    assert "my-model" in card
    assert "rows.jsonl" in card
    assert "base_model" not in front_matter(card)


def test_results_stand_in_a_table_with_their_number_of_tokens() -> None:
    assert "## Results" not in make_model_card(make(), kind="compressed-tensors")
    card = make_model_card(make(), kind="compressed-tensors", rows=ROWS)
    assert "6,011 held-out tokens; KL(teacher‖student) in nats a token." in card
    assert "| distilled INT4 | 0.1534 | 19.800 | 4.25 | 116.7 MB |" in card


@pytest.mark.parametrize(
    ("command", "said", "not_said"),
    [("distill", "quantization-aware training", "without training"), ("quantize", "by AWQ, without training", "aware")],
)
def test_card_says_whether_it_was_trained(command: str, said: str, not_said: str) -> None:
    card = make_model_card(make(quant={"method": "awq"}), kind="compressed-tensors", command=command)
    assert said in card
    assert not_said not in card
    assert f"rayqd {command} " in card


def test_card_of_an_export_is_replaced_whole(tmp_path: Path) -> None:
    write_card(tmp_path, "old")
    write_card(tmp_path, "new")
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [("README.md", "new")]


def test_several_sources_are_named_with_their_shares_and_without_their_directories(tmp_path: Path) -> None:
    sources = [{"source": str(tmp_path / "rows.jsonl"), "weight": 3}, {"source": "some/set", "split": "test"}]
    card = make_model_card(Config(data={"sources": sources}), kind="compressed-tensors")
    assert "Data: rows.jsonl, split train, 0.75 of the sequences; some/set, split test, 0.25 of the sequences." in card
    assert "datasets:\n- some/set\n" in card
    assert str(tmp_path) not in card
