"""`rayqd export` of a checkpoint and its verification: what was trained is what is there; no vLLM, no Ray."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from rayqd.commands import export as commands_export
from rayqd.learner.checkpoint import DIGESTS, Checkpoints, load_checkpoint
from tests.export.trained_run import flip_a_byte, run, verdict

pytestmark = pytest.mark.usefixtures("without_vllm")


@pytest.mark.parametrize(
    ("form", "kind"),
    [
        ("int4", "lora"),
        *(
            pytest.param(*each, marks=pytest.mark.slow)
            for each in (("asymmetric", "none"), ("nvfp4", "lora"), ("nf4", "lora"), ("fp4", "none"))
        ),
    ],
)
def test_export_of_a_checkpoint_is_what_was_trained(make_run: Any, form: str, kind: str) -> None:
    run_dir, config = make_run(form, kind=kind)
    code, screen = run(run_dir, config, verify=True)
    assert code == 0, screen
    assert "14 of 14 layers equal step 5, bit for bit" in screen
    assert "14 of 14 layers have the digests that training left" in screen
    found = verdict(run_dir)
    assert found["passed"]
    assert found["checks"]["KL"]["value"] <= 1e-4
    assert "over 46 held-out tokens" in found["checks"]["KL"]["text"]
    assert found["checks"]["vLLM"]["passed"] is None
    assert found["checks"]["vLLM"]["text"].startswith("not asked: vLLM ")
    assert ("bitsandbytes" in found["checks"]) == (form in ("nf4", "fp4"))


@pytest.mark.slow
def test_gguf_of_a_checkpoint_lies_beside_the_export_and_is_what_was_trained(make_run: Any) -> None:
    run_dir, config = make_run("int4")
    assert run(run_dir, config)[0] == 0
    code, screen = run(run_dir, config, kind_name="gguf", verify=True)
    assert code == 0, screen
    assert {path.name for path in (run_dir / "export-gguf").iterdir()} == {
        "model-Q4_0.gguf",
        "README.md",
        "rayqd-checksums.json",
    }
    assert verdict(run_dir, "export-gguf")["passed"]
    assert "not asked: vLLM does not load gguf" in screen


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["gptq", "awq", "mlx"])
def test_layouts_of_a_checkpoint_are_what_was_trained(make_run: Any, kind: str) -> None:
    run_dir, config = make_run("int4")
    code, screen = run(run_dir, config, kind_name=kind, verify=True)
    assert code == 0, screen
    assert "14 of 14 layers equal step 5, bit for bit" in screen
    assert verdict(run_dir, f"export-{kind}")["checks"]["logits"]["passed"]


def uploads_to(found: list[tuple[Path, str, bool]]) -> Callable[..., str]:
    def push(directory: Path, repo_id: str, *, is_private: bool) -> str:
        found.append((directory, repo_id, is_private))
        return f"https://hub/{repo_id}"

    return push


@pytest.mark.slow
def test_only_what_is_verified_is_uploaded(make_run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    uploaded: list[tuple[Path, str, bool]] = []
    monkeypatch.setattr(commands_export, "check_push", lambda repo_id: None)
    monkeypatch.setattr(commands_export, "push", uploads_to(uploaded))
    run_dir, config = make_run("int4")
    code, screen = run(run_dir, config, kind_name="awq", push_to="me/mine")
    assert (code, uploaded) == (0, [(run_dir / "export-awq", "me/mine", True)])
    assert "is at https://hub/me/mine" in screen
    assert "is there and is uploaded as it is" in run(run_dir, config, kind_name="awq", push_to="me/mine")[1]
    flip_a_byte(run_dir / "export-awq" / "model.safetensors", "model.layers.0.mlp.up_proj.qweight")
    code, screen = run(run_dir, config, kind_name="awq", verify=True, push_to="me/mine", is_public=True)
    assert (code, len(uploaded)) == (1, 2)
    assert "model.layers.0.mlp.up_proj.weight: " in screen


@pytest.mark.slow
def test_run_without_checkpoints_is_verified_against_its_own_codes_and_can_become_gguf(make_run: Any) -> None:
    run_dir, config = make_run("int4")
    run(run_dir, config)
    shutil.rmtree(run_dir / "checkpoints")
    code, screen = run(run_dir, config, verify=True)
    assert code == 0, screen
    assert "layers equal the codes in" in screen
    assert "not measured: there is no checkpoint" in screen
    code, screen = run(run_dir, config, kind_name="gguf", verify=True)
    assert code == 0, screen
    assert "14 of 14 layers equal the codes in" in screen


def test_digests_are_those_of_the_values_a_checkpoint_holds(make_run: Any) -> None:
    run_dir, config = make_run("int4")
    assert run(run_dir, config)[0] == 0
    model = AutoModelForCausalLM.from_pretrained(run_dir / "export", dtype=torch.bfloat16)
    model(torch.zeros((1, 1), dtype=torch.long))
    recorded = load_checkpoint(Checkpoints(run_dir / "checkpoints", 2).path(5))[DIGESTS]
    for name, expected in recorded.items():
        bits = (model.get_submodule(name).weight.detach() + 0.0).view(torch.int16).numpy().tobytes()
        assert bytes(expected.tolist()) == hashlib.sha256(bits).digest()
