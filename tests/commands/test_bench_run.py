"""`rayqd bench run`: what the command line may say, and rows that are kept as they come."""

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from rayqd.bench import shapes
from rayqd.bench.head_to_head.plan import plan_run
from rayqd.bench.head_to_head.random_checkpoint import byte_tokenizer, write_random_checkpoint
from rayqd.bench.head_to_head.result import HeadToHeadResult
from rayqd.commands import bench_run
from rayqd.commands.bench_run import run_head_to_head
from rayqd.config.arguments import read_arguments
from rayqd.errors import ConfigError

ROW = HeadToHeadResult(arm="on-policy", contender="rayqd", label="rayqd", status="measured", seconds=2.0)

HEADER = {
    "model": "random huge", "sequences": 8, "new_tokens": 128, "dtype": "bfloat16", "device": "a card",
    "group_size": 128, "rank": 16,
}  # fmt: skip


def plan(*words: str, **options: str) -> Any:
    return plan_run(read_arguments(list(words)), options)


@pytest.mark.parametrize(
    ("words", "options", "told"),
    [
        ([], {"peers": "trl-gdk"}, "flag --peers=trl-gdk: trl-gdk is none of trl-gkd, trl-distillation, vllm"),
        ([], {"arms": "both"}, "flag --arms=both: both is none of on-policy, off-policy"),
        ([], {"sequences": "8"}, "flag --sequences=8: must be SEQUENCESxNEW_TOKENS"),
        ([], {"steps": "1"}, "flag --steps=1: must be a whole number from 2"),
        ([], {"shape": "qwen"}, "flag --shape=qwen: must be one of smollm2-135m"),
        (["--learner.steps", "3"], {}, "flag --learner.steps: rayqd bench run makes its own; use --steps"),
        (["--eval.source", "x"], {}, "flag --eval.source: rayqd bench run makes its own; leave it out"),
        ([], {"json": "/tmp"}, "flag --json=/tmp: is a directory; name a file"),
        ([], {"beside": "/nowhere.json"}, "flag --beside=/nowhere.json: is not what --json"),
    ],
)
def test_what_cannot_be_measured_is_refused_in_a_line(words: list[str], options: dict[str, str], told: str) -> None:
    with pytest.raises(ConfigError) as error:
        plan(*words, **options)
    assert str(error.value).startswith(told)


def test_settings_are_rayqds_own_and_options_say_the_rest(tmp_path: Path) -> None:
    made = plan("--learner.num_workers", "2", sequences="16x32", peers="vllm,trl-gkd", arms="off-policy", steps="3")
    assert made.config.learner.num_workers == 2
    assert made.config.quant.group_size == 64  # the widest of SmolLM2's groups
    assert (made.num_sequences, made.new_tokens, made.steps) == (16, 32, 3)
    assert (made.arms, made.peers) == (("off-policy",), ("trl-gkd", "vllm"))
    assert plan(shape="qwen3-4b", peers="none").config.quant.group_size == 128
    assert plan(json=str(tmp_path / "x.json")).logs == tmp_path / "x.json.logs"


def test_rows_are_kept_as_they_come_and_those_beside_are_not_measured_again(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, str]] = []

    def measure_one(plan: Any, contender: str, workload: Any, runs: Path) -> HeadToHeadResult:
        asked.append((workload.arm, contender))
        if contender == "vllm":
            raise KeyboardInterrupt
        return replace(ROW, arm=workload.arm, contender=contender)

    monkeypatch.setattr(bench_run, "_measure_one", measure_one)
    first, second = tmp_path / "first.json", tmp_path / "second.json"
    words = ("--model.name", str(tiny_model))
    options = {"sequences": "2x8", "steps": "2", "arms": "on-policy", "json": str(first)}
    interrupted = plan(*words, **options, peers="trl-gkd,vllm")
    with pytest.raises(KeyboardInterrupt):
        run_head_to_head(interrupted, Console(file=io.StringIO()))
    kept = json.loads(first.read_text())
    assert [row["contender"] for row in kept["rows"]] == ["rayqd", "trl-gkd"]
    assert (kept["sequences"], kept["new_tokens"]) == (2, 8)
    asked.clear()
    options = {"sequences": "2x8", "steps": "2", "json": str(second), "beside": str(first)}
    results = run_head_to_head(plan(*words, **options, peers="trl-gkd"), Console(file=io.StringIO()))
    assert asked == [("off-policy", "rayqd"), ("off-policy", "trl-gkd")]
    assert len(json.loads(second.read_text())["rows"]) == 4
    assert [row.arm for row in results] == ["on-policy", "on-policy", "off-policy", "off-policy"]


def test_a_run_that_is_there_already_is_not_taken_for_a_new_one(tmp_path: Path, tiny_model: Path) -> None:
    (tmp_path / "runs" / "on-policy").mkdir(parents=True)
    words = ("--model.name", str(tiny_model), "--runs_dir", str(tmp_path / "runs"))
    made = plan(*words, sequences="2x8", steps="2", peers="none", logs=str(tmp_path / "logs"))
    with pytest.raises(ConfigError, match="has a run on-policy already"):
        run_head_to_head(made, Console(file=io.StringIO()))


def test_a_run_that_is_in_the_way_is_told_before_anything_is_measured(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "runs" / "off-policy").mkdir(parents=True)
    monkeypatch.setattr(bench_run, "measure_own", lambda *_, **__: pytest.fail("it was measured"))
    words = ("--model.name", str(tiny_model), "--runs_dir", str(tmp_path / "runs"))
    made = plan(*words, sequences="2x8", steps="2", peers="none", logs=str(tmp_path / "logs"))
    with pytest.raises(ConfigError, match="has a run off-policy already"):
        run_head_to_head(made, Console(file=io.StringIO()))


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ('"run"', "not what --json of rayqd bench run wrote"),
        ('{"rows": [1]}', "not what --json of rayqd bench run wrote"),
        ('{"rows": []}', "no model in it"),
        ('{"rows": [', "not what --json of rayqd bench run wrote"),
        (json.dumps({**HEADER, "rows": [{**ROW.to_json(), "contender": "newer"}]}), "a row of newer"),
    ],
)
def test_a_file_that_is_something_else_is_refused_in_a_line(tmp_path: Path, content: str, told: str) -> None:
    (tmp_path / "rows.json").write_text(content)
    made = plan(**{"peers-alone": "true"}, peers="none", beside=str(tmp_path / "rows.json"))
    with pytest.raises(ConfigError, match=told):
        run_head_to_head(made, Console(file=io.StringIO()))


def test_peers_alone_leave_rayqd_out(tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(bench_run, "_measure_one", lambda plan, contender, *_: asked.append(contender) or ROW)
    options = {"sequences": "2x8", "steps": "2", "arms": "on-policy", "peers-alone": "true", "peers": "vllm"}
    run_head_to_head(plan("--model.name", str(tiny_model), **options), Console(file=io.StringIO()))
    assert asked == ["vllm"]


def test_rows_of_earlier_calls_make_a_table_without_a_model(tmp_path: Path) -> None:
    peer = replace(ROW, contender="trl-gkd", label="TRL GKDTrainer", seconds=13.0)
    for name, row in (("own", ROW), ("peer", peer)):
        (tmp_path / f"{name}.json").write_text(json.dumps({**HEADER, "rows": [row.to_json()]}))
    output = io.StringIO()
    options = {"peers-alone": "true", "peers": "none", "json": str(tmp_path / "new" / "all.json")}
    files = f"{tmp_path / 'peer.json'},{tmp_path / 'own.json'}"
    run_head_to_head(plan(**options, beside=files), Console(file=output, width=140))
    assert "random huge, 8 x 128 new tokens, bfloat16, a card" in output.getvalue()
    assert "6.50" in output.getvalue()  # 13 s to 2 s
    assert [row["contender"] for row in json.loads((tmp_path / "new" / "all.json").read_text())["rows"]] == [
        "rayqd",
        "trl-gkd",
    ]
    with pytest.raises(ConfigError, match="nothing to measure or to show"):
        run_head_to_head(plan(**options), Console(file=output))


def test_rows_of_another_workload_are_refused(tmp_path: Path, tiny_model: Path) -> None:
    file = tmp_path / "other.json"
    file.write_text(
        json.dumps({**HEADER, "model": str(tiny_model), "sequences": 4, "new_tokens": 8, "rows": [ROW.to_json()]})
    )
    made = plan("--model.name", str(tiny_model), sequences="2x8", steps="2", beside=str(file), peers="none")
    with pytest.raises(ConfigError, match=r"--beside=.*other.json: sequences is 4 there and 2 here"):
        run_head_to_head(made, Console(file=io.StringIO()))


def test_a_random_model_has_a_tokenizer_in_which_every_id_is_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import AutoConfig, AutoTokenizer

    shape = replace(shapes.SHAPES["qwen3-0.6b"], vocab_size=400, hidden_size=32, intermediate_size=64)
    monkeypatch.setitem(shapes.SHAPES, "tiny", replace(shape, num_hidden_layers=1, num_attention_heads=8))
    write_random_checkpoint("tiny", "float32", tmp_path / "model")
    tokenizer: Any = AutoTokenizer.from_pretrained(tmp_path / "model")
    assert len(tokenizer) == 400 == len(byte_tokenizer(400))
    assert all(tokenizer.decode([number]) for number in range(400))
    assert tokenizer("Grüße", add_special_tokens=False)["input_ids"] != []
    assert tokenizer.decode(tokenizer("Grüße 1", add_special_tokens=False)["input_ids"]) == "Grüße 1"
    assert AutoConfig.from_pretrained(tmp_path / "model").eos_token_id == tokenizer.eos_token_id
