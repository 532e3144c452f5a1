"""Memory that runs out while a model is calibrated: its sequences go in smaller calls, and come to the same.

The error is torch's own class, raised in the middle of a decoder layer, when some inputs are counted already.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from rayqd.config.sections import QuantConfig
from rayqd.errors import WorkerError
from rayqd.model import packed_attention
from rayqd.model.calibration import calibrate
from rayqd.model.calibration.layer_inputs import LayerInputs
from rayqd.model.calibration.sequential import decoder_layers_of
from rayqd.model.calibration.statistics import collect_input_statistics
from rayqd.model.forward.of_model import mode_of
from rayqd.model.token_limit import TokenLimit
from rayqd.quant import make_grid
from rayqd.types import IntArray
from tests.tiny_models import tiny_causal_model, tiny_config

QUANT = QuantConfig(group_size=8, rounding_steps=30)
GRID = make_grid(QUANT, torch.float64)
LENGTHS = [12, 30, 12, 30, 12, 30, 12]  # 138 tokens; those of one length can share a call of any model


def sequences() -> list[IntArray]:
    random = np.random.default_rng(0)
    return [random.integers(3, 60, length, dtype=np.int32) for length in LENGTHS]


def make_model(model_type: str) -> Any:
    """In float64, where the order of sums tips no code; the statistics themselves are float32."""
    model: Any = tiny_causal_model(tiny_config(model_type)).double()
    model.set_experts_implementation("eager")
    if mode_of(model).is_packed:
        model.set_attn_implementation(packed_attention.NAME)
    return model


def fail_at_call(module: nn.Module, k: int) -> list[int]:
    """Let a module's k-th call run out of memory; returns a list that gets the tokens of each call."""
    calls: list[int] = []

    def check(_: nn.Module, args: tuple[Tensor, ...]) -> None:
        calls.append(args[0].shape[:-1].numel())
        if len(calls) == k + 1:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    module.register_forward_pre_hook(check)
    return calls


def calibrated(
    model: Any, method: str, told: list[str] | None = None, max_batch_tokens: int = 10_000
) -> dict[str, Tensor]:
    remark: Callable[[str], None] = (lambda _: None) if told is None else told.append
    calibrate(model, QUANT, GRID, sequences(), method=method, max_batch_tokens=max_batch_tokens, on_remark=remark)
    return model.state_dict()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model_type", "method", "layer", "k"),
    [
        ("llama", "gptq", "mlp.down_proj", 0),  # while the first layer is looked at
        ("llama", "gptq", "mlp.down_proj", 1),  # after most of its inputs are counted
        ("llama", "gptq", "mlp.down_proj", 2),  # on the way to the next layer
        ("llama", "awq", "mlp.down_proj", 1),
        ("mixtral", "gptq", "mlp.experts", 1),
        ("lfm2", "gptq", "feed_forward.w2", 1),  # calls of one length: 48 and 90 tokens
        ("lfm2", "gptq", "feed_forward.w2", 5),  # the second on the way, when the first is there already
    ],
)
def test_calibration_comes_to_the_same(model_type: str, method: str, layer: str, k: int) -> None:
    expected = calibrated(make_model(model_type), method)
    model, told = make_model(model_type), list[str]()
    calls = fail_at_call(decoder_layers_of(model, method)[0].get_submodule(layer), k)
    own = calibrated(model, method, told)
    assert len(calls) > k + 1
    assert max(calls[k + 1 :]) <= calls[k] // 2 or model_type == "lfm2"
    assert "did not fit in memory (CUDA out of memory" in told[0]
    assert "(learner.microbatch_tokens)" in told[0]
    for name, tensor in expected.items():
        torch.testing.assert_close(own[name], tensor, rtol=0, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.slow
@pytest.mark.parametrize("k", [0, 3, 6])  # while sequences are embedded; in the first look at a rounding; in a step
def test_autoround_comes_to_the_same_in_smaller_calls(k: int) -> None:
    expected = calibrated(make_model("llama"), "autoround")
    model, told = make_model("llama"), list[str]()
    calls = fail_at_call(decoder_layers_of(model, "autoround")[0].get_submodule("mlp.down_proj"), k)
    own = calibrated(model, "autoround", told)
    assert calls[: k + 1] == [sum(LENGTHS)] * (k + 1)
    assert max(calls[k + 1 :]) <= sum(LENGTHS) // 2
    assert told[0].endswith("from now on 69 at a time, without a change of any result (learner.microbatch_tokens)")
    original = make_model("llama").state_dict()
    assert any(not torch.equal(own[name], tensor) for name, tensor in original.items())
    for name, tensor in expected.items():
        same = GRID.quantize(own[name]).codes == GRID.quantize(tensor).codes if tensor.dim() == 2 else torch.tensor(1)
        assert same.float().mean() > 0.99, name  # of a gradient near zero another order of sums may turn the sign


def test_what_was_counted_before_the_error_is_not_counted_twice() -> None:
    """Second moments are those of the inputs that each sequence gives alone."""
    model = make_model("llama")
    layers = decoder_layers_of(model, "gptq")
    names: dict[nn.Module, str] = {module: name for name, module in model.named_modules()}
    seen: list[Tensor] = []
    with torch.no_grad():
        hook = layers[0].self_attn.q_proj.register_forward_pre_hook(lambda _, args: seen.append(args[0][0]))  # type: ignore[union-attr]
        for ids in sequences():
            model(input_ids=torch.from_numpy(ids.astype(np.int64))[None], lengths=[len(ids)])
        hook.remove()
        x = torch.cat(seen).float()
        inputs = LayerInputs(model, layers, sequences(), TokenLimit(tokens=10_000, setting="", advice="", tell=str))
        fail_at_call(layers[0].get_submodule("mlp.down_proj"), 0)
        (of_queries, *_) = inputs.collect(
            lambda: collect_input_statistics(layers[0], names, lambda: inputs.run(0)),
        )
    assert len(x) == sum(LENGTHS)
    torch.testing.assert_close(of_queries.second_moment, x.mT @ x, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(of_queries.magnitude, x.abs().sum(0), rtol=1e-4, atol=1e-4)


def test_a_sequence_that_does_not_fit_alone_ends_with_what_makes_room() -> None:
    model = make_model("llama")

    def fail(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    model.model.layers[0].mlp.register_forward_pre_hook(fail)
    with pytest.raises(
        WorkerError, match=r"a row of 12 tokens did not fit in memory .*: lower data\.max_length, or round"
    ):
        calibrated(model, "gptq")
