"""Names of other tools are answered with rayqd's; every right side of the tables is real, and no left side is."""

from __future__ import annotations

import re

import pytest

from rayqd.cli import COMMANDS, main
from rayqd.config import load_config
from rayqd.config.other_tools import COMMANDS as OTHER_COMMANDS
from rayqd.config.other_tools import SETTINGS, VALUES
from rayqd.config.settings import section_names, settings
from rayqd.errors import ConfigError

LEAVES = {key.rpartition(".")[2] for key in settings()}

# Flags of TRL's and transformers' trainers, peft, vLLM, lm-eval and axolotl, and the setting that does their work.
KNOWN = {
    "--learning_rate": "learner.lr",
    "--num_train_epochs": "learner.steps",
    "--epochs": "learner.steps",
    "--max_steps": "learner.steps",
    "--output_dir": "runs_dir",
    "--bits": "quant.format",
    "--per_device_train_batch_size": "learner.batch_size",
    "--gradient_accumulation_steps": "learner.microbatch_tokens",
    "--model_name_or_path": "model.name",
    "--temperature": "rollout.temperature",
    "--max_length": "data.max_length",
    "--lora_r": "adapter.rank",
    "--lora_alpha": "adapter.alpha",
    "--bf16": "model.dtype",
    "--dataset_name": "data.source",
    "--tensor_parallel_size": "rollout.num_workers",
    "--lr_scheduler_type": "learner.schedule",
    "--warmup_ratio": "learner.warmup_ratio",
    "--save_steps": "checkpoint.every",
    "--save_total_limit": "checkpoint.keep",
    "--lmbda": "distill.lmbda",
    "--teacher_model_name_or_path": "teacher.name",
    "--load_in_4bit": "quant.format",
    "--max_model_len": "data.max_length",
    "--sequence_len": "data.max_length",
    "--resume": "goes on from the last checkpoint",
    "--resume_from_checkpoint": "goes on from the last checkpoint",
    "--report_to": "metrics.jsonl",
}


@pytest.mark.parametrize("name", SETTINGS)
def test_what_stands_for_another_tools_setting_is_one_of_ours(name: str) -> None:
    counterpart = SETTINGS[name]
    assert set(counterpart.settings) <= settings().keys()
    sections = "|".join(section_names())
    named = set(re.findall(rf"\b(?:{sections})\.[a-z_]+\b", counterpart.note))
    assert named <= settings().keys()
    assert str(counterpart)
    assert name not in settings()
    assert name not in LEAVES, "the setting of that name is found without the table"


def test_values_and_commands_of_the_tables_are_ours() -> None:
    for key, values in VALUES.items():
        assert set(values.values()) <= set(settings()[key].choices)
        assert not values.keys() & set(settings()[key].choices)
    assert set(OTHER_COMMANDS.values()) <= COMMANDS.keys()
    assert not OTHER_COMMANDS.keys() & COMMANDS.keys()


@pytest.mark.parametrize(
    "spelling",
    [
        lambda flag: [flag, "1"],
        lambda flag: [f"{flag}=1"],
        lambda flag: [f"--{flag.strip('-').replace('_', '-')}", "1"],
        lambda flag: [flag.removeprefix("-"), "1"],
        lambda flag: [f"--trainer.{flag.strip('-')}", "1"],
        lambda flag: [f"—{flag.strip('-')}", "1"],
        lambda flag: [f"{flag.strip('-')}=1"],
    ],
    ids=["space", "equals", "dashes", "single dash", "section", "typographic dash", "hydra"],
)
@pytest.mark.parametrize("flag", KNOWN)
def test_a_flag_of_another_tool_is_answered_with_ours(flag: str, spelling) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(spelling(flag))
    assert KNOWN[flag] in str(caught.value)


def test_a_key_of_another_tool_in_a_file_is_answered_too(tmp_path) -> None:
    file = tmp_path / "a.toml"
    file.write_text("learning_rate = 1e-4")
    with pytest.raises(ConfigError, match=r"unknown setting learning_rate; rayqd's name for it is learner\.lr$"):
        load_config([f"@{file}"])


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["--learningRate", "1"], "rayqd's name for it is learner.lr"),
        (["--Learner.LR", "1"], "did you mean learner.lr?"),
        (["--lerning_rate", "1"], "rayqd's name for it is learner.lr"),
        (["--actor_rollout_ref.actor.optim.lr", "1"], "did you mean learner.lr?"),
        (["--temperature", "1"], "did you mean distill.temperature or rollout.temperature?"),
        (["-lr", "1"], "did you mean learner.lr?"),
        (["-learner.lr=1"], "did you mean --learner.lr=1?"),
        (["learner.lr=1"], "did you mean --learner.lr=1?"),
        (["--quant.format", "W4A16"], "did you mean int4?"),
        (["--quant.format", "INT4"], "did you mean int4?"),
        (["--model.dtype", "bf16"], "did you mean bfloat16?"),
        (["--model.dtype", "fp16"], "did you mean float16?"),
        (["--adapter.kind", "full"], "did you mean none?"),
        (["--quant.rule", "asym"], "did you mean asymmetric?"),
    ],
)
def test_spellings_that_are_nearly_right_are_mended(words: list[str], hint: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(words)
    assert str(caught.value).endswith(hint)


@pytest.mark.parametrize(
    ("word", "command"), [("train", "distill"), ("Distill", "distill"), ("lm-eval", "eval"), ("benchmark", "bench")]
)
def test_a_command_of_another_tool_is_answered_with_ours(word: str, command: str, capsys) -> None:
    assert main([word]) == 2
    assert capsys.readouterr().err.endswith(f"did you mean {command}?\n")
