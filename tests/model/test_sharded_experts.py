"""Experts with rows of the weights on each of two workers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.multiprocessing.spawn import spawn

from rayqd.config import Config
from rayqd.errors import ConfigError
from rayqd.model.sharding import check_can_be_sharded, full_tensor
from rayqd.model.student import Student
from rayqd.quant import quantizable_layers
from tests.model.small_architectures import make_model

IDS = torch.tensor([[5, 17, 3, 88, 41, 9, 60, 23]])
CONFIG = Config.model_validate(
    {"quant": {"group_size": 32}, "adapter": {"kind": "none"}, "model": {"dtype": "float32"}}
)


def compare_with_a_whole_student(rank: int, store: str, model_types: list[str]) -> None:
    """Assert that a sharded student has the gradients, added up over both workers, and the codes of one that is not."""
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    mesh = init_device_mesh("cpu", (2,))
    for model_type in model_types:
        whole, sharded = Student(make_model(model_type), CONFIG), Student(make_model(model_type), CONFIG, mesh=mesh)
        for student in (whole, sharded):
            student.model(input_ids=IDS).logits.pow(2).mean().backward()
        expected, own = whole.parameters(), sharded.parameters()
        assert own.keys() == expected.keys()
        for name, parameter in own.items():
            assert torch.equal(full_tensor(parameter), expected[name])
            gradient, twice = parameter.grad, expected[name].grad
            assert gradient is not None
            assert twice is not None
            torch.testing.assert_close(full_tensor(gradient), 2 * twice, rtol=1e-3, atol=1e-5)
        codes = {name: quantized.codes for name, quantized in whole.quantized_layers()}
        assert all(torch.equal(quantized.codes, codes.pop(name)) for name, quantized in sharded.quantized_layers())
        assert not codes
    dist.destroy_process_group()


@pytest.mark.slow
def test_sharded_weights_have_the_gradients_and_codes_of_whole_ones(tmp_path: Path) -> None:
    spawn(compare_with_a_whole_student, (str(tmp_path / "store"), ["qwen2_moe"]), nprocs=2)


def test_a_layer_whose_weight_other_code_reads_is_refused_by_name() -> None:
    model = make_model("jamba")
    names = [*quantizable_layers(model, CONFIG.quant)]
    many = CONFIG.model_copy(update={"learner": CONFIG.learner.model_copy(update={"num_workers": 2})})
    check_can_be_sharded(model, names, CONFIG)
    check_can_be_sharded(make_model("qwen2_moe"), [*quantizable_layers(make_model("qwen2_moe"), CONFIG.quant)], many)
    with pytest.raises(ConfigError, match=r"learner.num_workers=2: .*dt_proj.* quant.ignore"):
        check_can_be_sharded(model, names, many)
