"""`rayqd export` and its verification, from a checkpoint on disk to verify.json; no vLLM, no Ray."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file, save_file
from small_models import byte_tokenizer, small_model
from transformers import AutoModelForCausalLM

from rayqd.commands import export as commands_export
from rayqd.commands.export import export_run
from rayqd.config import Config, to_toml
from rayqd.errors import ConfigError, ModelError, RunError, StorageError
from rayqd.export.digest import digest_layers
from rayqd.learner.checkpoint import DIGESTS, Checkpoints, load_checkpoint
from rayqd.model.student import Student
from rayqd.rollout import parity, vllm

FORMATS: dict[str, dict[str, Any]] = {
    "int4": {"group_size": 32, "init": "rtn"},
    "asymmetric": {"group_size": 32, "rule": "asymmetric", "init": "rtn"},
    "nvfp4": {"format": "nvfp4"},
    "nf4": {"format": "nf4", "group_size": 32, "double_quant": True},
    "fp4": {"format": "fp4", "group_size": 32},
}


@pytest.fixture(autouse=True)
def _without_vllm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parity, "_has_vllm", lambda: False)


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., tuple[Path, Config]]:
    """A function that leaves a run with one checkpoint of a student that is far from where it started."""

    def make(form: str = "int4", *, kind: str = "lora", checkpoint: bool = True) -> tuple[Path, Config]:
        source = tmp_path / "model"
        small_model("llama", tied=True, max_position_embeddings=256, bos_token_id=None).save_pretrained(source)
        byte_tokenizer().save_pretrained(source)
        rows = [{"prompt": f"say the {i}", "completion": "the " * (9 + i)} for i in range(12)]
        (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        config = Config.model_validate(
            {
                "name": "run",
                "runs_dir": tmp_path / "runs",
                "model": {"name": str(source)},
                "quant": FORMATS[form],
                "adapter": {"kind": kind, "rank": 4},
                "data": {"source": str(tmp_path / "rows.jsonl"), "max_length": 128, "min_room": 1},
                "eval": {"num_rows": 3},
            }
        )
        config.run_dir.mkdir(parents=True)
        (config.run_dir / "config.toml").write_text(to_toml(config))
        if checkpoint:
            student = Student.load(source, config)
            generator = torch.Generator().manual_seed(1)
            for parameter in student.parameters().values():
                parameter.data = torch.randn(parameter.shape, generator=generator) * 0.2
            tensors = {"student": student.state_dict(), DIGESTS: digest_layers(student)}
            Checkpoints(config.run_dir / "checkpoints", 2).save(5, tensors)
        return config.run_dir, config

    return make


def run(run_dir: Path, config: Config, **options: Any) -> tuple[int, str]:
    """Exit code and what the terminal shows."""
    screen = io.StringIO()
    code = export_run(run_dir, config, console=Console(file=screen, width=200), **options)
    return code, screen.getvalue()


def verdict(run_dir: Path, export: str = "export") -> dict[str, Any]:
    found = json.loads((run_dir / "verify.json").read_text())[export]
    return {**found, "checks": {check["name"]: check for check in found["checks"]}}


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


def flip_a_byte(file: Path, tensor: str) -> None:
    tensors = load_file(file)
    flat = tensors[tensor].view(torch.uint8).reshape(-1)
    flat[3] ^= 0x10
    save_file(tensors, file, metadata={"format": "pt"})


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


def test_existing_export_stays_unless_overwritten(make_run: Any) -> None:
    run_dir, config = make_run("int4")
    run(run_dir, config)
    before = (run_dir / "export" / "model.safetensors").stat().st_ino
    with pytest.raises(StorageError, match="export exists already; add --overwrite"):
        run(run_dir, config)
    assert (run_dir / "export" / "model.safetensors").stat().st_ino == before
    assert run(run_dir, config, overwrite=True)[0] == 0
    assert run(run_dir, config, out=run_dir / "elsewhere")[0] == 0
    assert (run_dir / "elsewhere" / "model.safetensors").is_file()


def test_directory_that_is_no_export_is_never_replaced(make_run: Any, tmp_path: Path) -> None:
    run_dir, config = make_run("int4")
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.txt").write_text("years of work")
    with pytest.raises(StorageError, match="home is there and is no export, so it stays"):
        run(run_dir, config, out=tmp_path / "home", overwrite=True)
    assert (tmp_path / "home" / "thesis.txt").read_text() == "years of work"


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


def test_moved_run_is_found_where_it_lies(make_run: Any, tmp_path: Path) -> None:
    run_dir, config = make_run("int4")
    moved = run_dir.rename(tmp_path / "moved")
    assert run(moved, config)[0] == 0
    assert (moved / "export" / "config.json").is_file()


@pytest.mark.parametrize(
    ("form", "kind_name", "message"),
    [
        ("int4", "ggfu", "flag --as=ggfu: must be one of .*; did you mean gguf"),
        ("int4", "bitsandbytes", "bitsandbytes holds nf4 and fp4, and this run is int4: use --as compressed-tensors"),
        ("nf4", "gguf", "GGUF Q4_0 holds int4 in groups of 32 .*, not nf4"),
    ],
)
def test_kind_that_does_not_fit_is_one_clear_line(make_run: Any, form: str, kind_name: str, message: str) -> None:
    run_dir, config = make_run(form)
    with pytest.raises(ConfigError, match=message):
        run(run_dir, config, kind_name=kind_name)
    assert not (run_dir / "export-gguf").exists()


def test_settings_that_would_make_it_another_model_are_refused(make_run: Any) -> None:
    run_dir, config = make_run("int4")
    other = config.model_copy(update={"seed": 7, "eval": config.eval.model_copy(update={"num_rows": 2})})
    with pytest.raises(ConfigError, match=r"takes the run as it is, and this would change it: seed: 42 -> 7$"):
        run(run_dir, other)


def test_run_that_never_came_to_a_checkpoint_is_an_error(make_run: Any, tmp_path: Path) -> None:
    run_dir, config = make_run("int4", checkpoint=False)
    with pytest.raises(RunError, match="has neither a checkpoint nor an export yet"):
        run(run_dir, config)
    with pytest.raises(ConfigError, match=r"is no run's directory: it has no config\.toml"):
        run(tmp_path, config)


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


def test_digests_are_those_of_the_values_a_checkpoint_holds(make_run: Any) -> None:
    run_dir, config = make_run("int4")
    assert run(run_dir, config)[0] == 0
    model = AutoModelForCausalLM.from_pretrained(run_dir / "export", dtype=torch.bfloat16)
    model(torch.zeros((1, 1), dtype=torch.long))
    recorded = load_checkpoint(Checkpoints(run_dir / "checkpoints", 2).path(5))[DIGESTS]
    for name, expected in recorded.items():
        bits = (model.get_submodule(name).weight.detach() + 0.0).view(torch.int16).numpy().tobytes()
        assert bytes(expected.tolist()) == hashlib.sha256(bits).digest()
