"""What is not what was trained is found out by `rayqd export --verify`, with the tensor named."""

from __future__ import annotations

import json
from typing import Any

import pytest
from safetensors.torch import load_file

from rayqd.errors import ModelError
from rayqd.learner.checkpoint import DIGESTS, Checkpoints, load_checkpoint
from rayqd.rollout import parity, vllm
from rayqd.rollout.kernels import WeightForm
from tests.export.trained_run import flip_a_byte, run, verdict

pytestmark = pytest.mark.usefixtures("without_vllm")


@pytest.mark.parametrize(
    ("form", "tensor", "named", "check"),
    [
        ("int4", "model.layers.1.mlp.up_proj.weight_packed", "model.layers.1.mlp.up_proj.weight: 1 of", "weights"),
        pytest.param(
            "nvfp4",
            "model.layers.0.mlp.up_proj.weight_scale",
            "model.layers.0.mlp.up_proj.weight: ",
            "weights",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "nf4",
            "model.layers.0.self_attn.q_proj.weight",
            "model.layers.0.self_attn.q_proj.weight: 1 of",
            "weights",
            marks=pytest.mark.slow,
        ),
        (
            "int4",
            "model.layers.0.input_layernorm.weight",
            "model.layers.0.input_layernorm.weight: 1 of",
            "dense tensors",
        ),
    ],
)
def test_tampered_export_fails_with_the_tensor_named(
    make_run: Any, form: str, tensor: str, named: str, check: str
) -> None:
    run_dir, config = make_run(form)
    run(run_dir, config)
    flip_a_byte(run_dir / "export" / "model.safetensors", tensor)
    code, screen = run(run_dir, config, verify=True)
    assert code == 1
    assert "is verified as it is" in screen
    assert "DIFFERS" in screen
    assert named in screen
    found = verdict(run_dir)
    assert not found["passed"]
    (line,) = found["checks"][check]["differing"]
    assert line.startswith(named)


@pytest.mark.slow
def test_tampered_gguf_fails_with_the_tensor_named(make_run: Any) -> None:
    run_dir, config = make_run("int4")
    run(run_dir, config, kind_name="gguf")
    file = run_dir / "export-gguf" / "model-Q4_0.gguf"
    whole = bytearray(file.read_bytes())
    whole[-5] ^= 0x01  # the last tensor is the last layer's down_proj
    file.write_bytes(whole)
    code, screen = run(run_dir, config, kind_name="gguf", verify=True)
    assert code == 1
    assert "model.layers.1.mlp.down_proj.weight: 1 of 6,144 values differ" in screen


def test_checkpoint_of_another_step_fails_with_a_divergence(make_run: Any) -> None:
    run_dir, config = make_run("int4")
    run(run_dir, config)
    checkpoints = Checkpoints(run_dir / "checkpoints", 2)
    state = load_file(checkpoints.path(5) / "student.safetensors")
    checkpoints.save(6, {"student": {name: tensor * 1.5 for name, tensor in state.items()}})
    code, _ = run(run_dir, config, verify=True)
    found = verdict(run_dir)
    assert code == 1
    assert found["checks"]["KL"]["value"] > 1e-4
    assert len(found["checks"]["weights"]["differing"]) == 14


def test_export_that_transformers_cannot_load_is_one_error(make_run: Any) -> None:
    run_dir, config = make_run("int4")
    run(run_dir, config)
    file = run_dir / "export" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ModelError, match=r"transformers cannot load .*export"):
        run(run_dir, config, verify=True)


@pytest.mark.slow
def test_export_that_vllm_cannot_load_is_one_line_of_a_verdict_that_goes_on(
    make_run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: Any, **settings: Any) -> None:
        print("vLLM's own words")
        raise ValueError("No available kernel\n  for this layer. " + "Reasons " * 200)

    monkeypatch.setattr(parity, "_has_vllm", lambda: True)
    packed = WeightForm(dtype="bfloat16")  # as on a CPU that has the kernel
    monkeypatch.setattr(parity, "choose_weight_form", lambda *_, **__: packed)
    monkeypatch.setattr(vllm, "VLLMEngine", refuse)
    run_dir, config = make_run("int4")
    code, screen = run(run_dir, config, verify=True)
    assert code == 0
    check = verdict(run_dir)["checks"]["vLLM"]
    assert check["passed"] is None
    assert check["text"].startswith("vLLM could not load it: ValueError: No available kernel for this layer. Reasons")
    assert check["text"].endswith(f" ...; more in {run_dir / 'verify.log'}")
    assert check["text"].count("Reasons") < 40
    assert (run_dir / "verify.log").read_text() == "vLLM's own words\n"
    assert "vLLM's own words" not in screen


def test_export_whose_config_makes_another_model_of_equal_weights_is_not_verified(make_run: Any) -> None:
    run_dir, config = make_run("int4")
    run(run_dir, config)
    file = run_dir / "export" / "config.json"
    settings = json.loads(file.read_text())
    settings["rms_norm_eps"] = 0.1
    file.write_text(json.dumps(settings))
    code, screen = run(run_dir, config, verify=True)
    checks = verdict(run_dir)["checks"]
    assert code == 1
    assert "DIFFERS" in screen
    assert checks["weights"]["passed"]
    assert checks["dense tensors"]["passed"]
    assert not checks["logits"]["passed"]


def test_an_export_that_equals_the_checkpoint_but_not_what_training_recorded_is_found_out(make_run: Any) -> None:
    """As on a device that rounds the merged weights otherwise than the one that trained them."""
    run_dir, config = make_run("int4")
    checkpoints = Checkpoints(run_dir / "checkpoints", 2)
    tensors = load_checkpoint(checkpoints.path(5))
    layer = next(iter(tensors[DIGESTS]))
    tensors[DIGESTS][layer] = tensors[DIGESTS][layer] ^ 1
    checkpoints.save(5, tensors)
    code, screen = run(run_dir, config, verify=True)
    assert code == 1
    assert "14 of 14 layers equal step 5, bit for bit" in screen
    assert "13 of 14 layers have the digests that training left" in screen
    assert f"{layer}: another digest" in screen
