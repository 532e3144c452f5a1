"""The teacher in a real vLLM engine, on real actors: what it writes is what transformers writes with the same weights.

In float32 and greedily, so that no rounding and no sampler stands between the two.
"""

import functools
import io
import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from transformers import AutoModelForCausalLM

from rayqd.commands.distill import distill
from rayqd.config import Config
from rayqd.config.resolved import to_toml
from rayqd.data import load_examples, load_run_data, make_plan
from rayqd.data.plan import off_policy_examples
from rayqd.model.load import load_tokenizer
from rayqd.rollout.engine import SamplingRequest
from rayqd.rollout.fake import FakeEngine

pytestmark = [pytest.mark.slow, pytest.mark.ray, pytest.mark.vllm]

ENDS = [2, 90]  # <|im_end|>, and a token that the tiny model often writes


@pytest.fixture(scope="module")
def model(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The tiny model, but for a second token in generation_config.json that ends its answers; as a section."""
    directory = tmp_path_factory.mktemp("models") / "tiny"
    shutil.copytree(tiny_model, directory)
    (directory / "generation_config.json").write_text(json.dumps({"eos_token_id": ENDS, "pad_token_id": 2}))
    return {"name": str(directory), "dtype": "float32"}


def greedy(config: Config, prompts: list[list[int]]) -> list[list[int]]:
    """transformers' completions, the token that ends each included; all prompts have the same length."""
    model: Any = AutoModelForCausalLM.from_pretrained(config.model.name, dtype=torch.float32)
    ids = torch.tensor(prompts)
    limits = {"min_new_tokens": config.rollout.min_new_tokens, "max_new_tokens": config.rollout.max_new_tokens}
    with torch.no_grad():
        whole = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, eos_token_id=ENDS, **limits)
    return [up_to_end(row[ids.shape[1] :].tolist(), config.rollout.min_new_tokens) for row in whole]


def up_to_end(ids: list[int], min_new_tokens: int) -> list[int]:
    """Without what fills the batch after a completion's end."""
    ends = [place for place, token in enumerate(ids) if token in ENDS and place >= min_new_tokens]
    return ids[: ends[0] + 1] if ends else ids


def test_a_killed_generation_goes_on_and_answers_every_prompt_once_as_transformers_does(
    tiny_config: Any, model: dict[str, str], tmp_path: Path
) -> None:
    rollout = {"temperature": 0.0, "min_new_tokens": 4, "max_new_tokens": 24, "max_concurrent": 1}
    config = tiny_config(model=model, rollout=rollout)
    file, out = tmp_path / "config.toml", tmp_path / "written.jsonl"
    file.write_text(to_toml(config))
    command = [sys.executable, "-m", "rayqd", "generate", f"@{file}", "--model", "teacher", "--out", str(out)]

    first = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    while not out.exists() or out.read_bytes().count(b"\n") < 3:
        assert first.poll() is None, first.communicate()[0]
        time.sleep(0.01)
    first.send_signal(signal.SIGKILL)
    first.communicate()
    kept = out.read_bytes()
    kept = kept[: kept.rindex(b"\n") + 1].splitlines(keepends=True)
    assert 3 <= len(kept) < 40

    second = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert second.returncode == 0, second.stdout + second.stderr
    assert f"answers 40 prompts of {config.data.source}, {len(kept)} of them there already" in second.stdout
    lines = out.read_bytes().splitlines(keepends=True)
    assert set(kept) < set(lines)
    rows = [json.loads(line) for line in lines]
    assert sorted(row["row"] for row in rows) == list(range(40))

    source = [json.loads(line) for line in Path(config.data.source).read_text().splitlines()]
    assert all(row["messages"][:-1] == [{"role": "user", "content": source[row["row"]]["prompt"]}] for row in rows)
    tokenizer = load_tokenizer(Path(config.model.name))
    read = load_examples(
        tokenizer, config.data.model_copy(update={"source": str(out)}), seed=0, num_needed=40, context_length=512
    )
    assert (len(read.examples), read.left_out) == (40, ())
    examples = sorted(read.examples, key=lambda example: example.row)
    expected = greedy(config, [example.prompt_ids.tolist() for example in examples])
    assert [row["num_tokens"] for row in rows] == [len(completion) for completion in expected]
    reasons = ["stop" if completion[-1] in ENDS else "length" for completion in expected]
    assert [row["finish_reason"] for row in rows] == reasons
    assert set(reasons) == {"stop", "length"}
    same = [row["same_tokens"] for row in rows]
    assert set(same) == {True, False}
    for example, completion, is_same in zip(examples, expected, same, strict=True):
        assert (example.completion_ids.tolist() == completion) == is_same


def test_seq_kd_trains_on_the_teachers_own_tokens(tiny_config: Any, model: dict[str, str]) -> None:
    rollout = {"temperature": 0.0, "min_new_tokens": 4, "max_new_tokens": 40}
    distillation = {"lmbda": 0.5, "seq_kd": True}
    config = tiny_config(model=model, rollout=rollout, distill=distillation, learner={"steps": 2})
    output = io.StringIO()
    student = functools.partial(FakeEngine, 128)
    result = distill(config, Console(file=output, width=200), make_engine=student)
    assert "the teacher wrote 4 completions" in output.getvalue()

    training, _ = load_run_data(load_tokenizer(Path(config.model.name)), config, 512)
    plan = make_plan(config, training.sizes)
    examples = [training.examples[i] for i in off_policy_examples(plan, 2)]
    expected = greedy(config, [example.prompt_ids.tolist() for example in examples])
    lines = [json.loads(line) for line in (result.run_dir / "teacher.jsonl").read_text().splitlines()]
    written = {line["row"]: line["completion_ids"] for line in lines}
    assert written == {example.row: completion for example, completion in zip(examples, expected, strict=True)}

    def num_tokens(sequence: Any) -> int:
        """Of what a step trains on: the teacher's completion, or what the student's engine writes for that seed."""
        example = training.examples[sequence.example]
        if not sequence.on_policy:
            return len(written[example.row])
        limits = {"min_new_tokens": 4, "max_new_tokens": 40}
        request = SamplingRequest(prompt_ids=example.prompt_ids, seed=sequence.seed, temperature=0, **limits)
        return len(student().generate([request])[0].token_ids)

    metrics = [json.loads(line) for line in (result.run_dir / "metrics.jsonl").read_text().splitlines()]
    trained = [row["num_loss_tokens"] for row in metrics if row["event"] == "step"]
    assert trained == [sum(num_tokens(sequence) for sequence in plan.step(step)) for step in range(2)]
    data = [sum(len(training.examples[s.example].completion_ids) for s in plan.step(step)) for step in range(2)]
    assert trained != data
