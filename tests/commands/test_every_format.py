"""Every kind of grid trains, exports, reloads and verifies: real actors and a real learner; one Ray for all of them."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file, save_file
from torch import Tensor

from rayqd.cli import main
from rayqd.commands.distill import distill
from rayqd.config import Config
from rayqd.learner.checkpoint import Checkpoints, load_checkpoint
from rayqd.learner.initialization import Initialization
from rayqd.model.student import Student
from rayqd.quant import make_grid, unpack
from rayqd.rollout import parity
from rayqd.rollout.fake import FakeEngine
from rayqd.rollout.weights import WeightLoader, choose_weight_loader
from rayqd.rollout.worker import MakeEngine
from rayqd.types import WireTensor
from tests.export.small_models import byte_tokenizer, small_model

pytestmark = [pytest.mark.slow, pytest.mark.ray]

# FP4 is NF4 with another table: test_blockwise, test_dense_rollouts, test_bitsandbytes and test_verify have both.
FORMATS: dict[str, dict[str, Any]] = {
    "int4": {"format": "int4", "group_size": 32, "init": "rtn"},
    "nvfp4": {"format": "nvfp4", "group_size": 16},
    "nf4": {"format": "nf4", "group_size": 32, "double_quant": True},
}


def writes_what_arrives(directory: Path, weight_loader: WeightLoader) -> MakeEngine:
    """Makes a fake engine that leaves the weights of each publish where the test can read them."""

    class WritesWhatArrives(FakeEngine):  # in here, because workers cannot import a test
        def load_weights(self, tensors: Mapping[str, WireTensor]) -> None:
            super().load_weights(tensors)
            kept = {name: tensor.contiguous() for name, tensor in self.weights.items()}
            save_file(kept, directory / f"version-{self.num_loads - 1}.safetensors")

    return lambda: WritesWhatArrives(128, weight_loader)


@pytest.fixture(scope="module", autouse=True)
def _one_ray() -> Iterator[None]:
    """A cluster that runs already, as for somebody with RAY_ADDRESS set: every run is a job on it."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 4, "include_dashboard": False})
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_ADDRESS", cluster.address)
        yield
    cluster.shutdown()


@pytest.fixture(autouse=True)
def _without_vllm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parity, "_has_vllm", lambda: False)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small, random, and with a tokenizer that GGUF has a place for."""
    directory = tmp_path_factory.mktemp("model")
    small_model("llama", tied=True, max_position_embeddings=512, bos_token_id=None).save_pretrained(directory)
    byte_tokenizer().save_pretrained(directory)
    return directory


@pytest.mark.parametrize("form", FORMATS)
def test_a_run_trains_on_what_its_own_weights_wrote_and_exports_what_it_trained(
    form: str, tiny_config: Any, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tiny_config(
        model={"name": str(model)},
        quant=FORMATS[form],
        distill={"lmbda": 0.5},
        learner={"steps": 2},
        checkpoint={"every": 1, "keep": 2},
    )
    screen = io.StringIO()
    make_engine = writes_what_arrives(tmp_path, choose_weight_loader(config))
    result = distill(config, Console(file=screen, width=160), make_engine=make_engine)
    run_dir = result.run_dir

    name = form.upper()
    steps = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    assert [row["num_on_policy"] for row in steps if row["event"] == "step"] == [2, 2]
    assert [row["arm"] for row in result.rows] == ["teacher", f"round-to-nearest {name}", f"distilled {name}"]
    assert result.rows[2]["kl_to_teacher"] != result.rows[1]["kl_to_teacher"]
    assert f"what {name} cost" in screen.getvalue()
    assert ("vllm serve" in screen.getvalue()) == (form in ("int4", "nvfp4"))

    for version in (0, 1):
        wrote = _weights_that_arrived(load_file(tmp_path / f"version-{version}.safetensors"), config)
        trained = _weights_of(_student(config, model, version))
        assert wrote.keys() == trained.keys()
        assert all(torch.equal(wrote[name], trained[name]) for name in trained), version
    assert not (tmp_path / "version-2.safetensors").exists()

    assert main(["export", str(run_dir), "--verify"]) == 0
    verified = capsys.readouterr()
    assert "14 of 14 layers equal step 2, bit for bit" in " ".join(verified.out.split())
    assert verified.err == ""

    assert main(["eval", str(run_dir)]) == 0
    assert capsys.readouterr().err == ""
    measured = json.loads((run_dir / "eval" / f"{run_dir.name}.json").read_text())["model"]
    assert measured["kl_to_teacher"] == pytest.approx(result.rows[2]["kl_to_teacher"], rel=1e-3)

    if form == "int4":
        assert main(["export", str(run_dir), "--as", "gguf", "--verify"]) == 0
        assert "14 of 14 layers equal step 2, bit for bit" in " ".join(capsys.readouterr().out.split())


def _student(config: Config, source: Path, version: int) -> Student:
    """The learner's student after so many steps."""
    student = Initialization(config).load_student(source)
    if version:
        state = load_checkpoint(Checkpoints(config.run_dir / "checkpoints", 2).path(version))
        student.load_state_dict(state["student"])
    return student


def _weights_of(student: Student) -> dict[str, Tensor]:
    return {name: student.grid.dequantize(weight) for name, weight in student.quantized_layers()}


def _weights_that_arrived(tensors: dict[str, Tensor], config: Config) -> dict[str, Tensor]:
    if config.quant.format != "int4":
        return {name.removesuffix(".weight"): tensor for name, tensor in tensors.items()}
    layers = {name.removesuffix(".weight_packed") for name in tensors if name.endswith("weight_packed")}
    grid = make_grid(config.quant, torch.bfloat16)
    parts = ("weight_packed", "weight_scale", "weight_shape")
    return {layer: grid.dequantize(unpack({part: tensors[f"{layer}.{part}"] for part in parts})) for layer in layers}
