"""Whether an export, loaded afresh, is the model that was trained: its weights, its dense tensors, its predictions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from rayqd.evals.fidelity import student_fidelity
from rayqd.export.source_names import to_source_names
from rayqd.model.forward.call import inputs_of_rows
from rayqd.model.forward.of_model import mode_of
from rayqd.model.fused_experts import split_experts
from rayqd.model.load import output_head
from rayqd.model.source_weights import SourceNames
from rayqd.quant import Grid, Quantized
from rayqd.teacher.forward import Teacher
from rayqd.types import IntArray, Rollout, ScoredRollout

if TYPE_CHECKING:
    from transformers import PreTrainedModel

MAX_KL = 1e-4
"""Nats a token between the trained model and its export, computed alike."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Tensors of a loaded export beside those they must be."""

    num_quantized: int
    num_dense: int
    differing: tuple[str, ...]  # "model.layers.0.mlp.up_proj.weight: 3 of 8,192 values differ, by up to 0.0156"
    quantized_differing: int

    @property
    def equal(self) -> bool:
        """Return whether no tensor differs, is missing or too many."""
        return not self.differing


def compare(
    model: PreTrainedModel,
    quantized: Iterable[tuple[str, Quantized]],
    dense: Mapping[str, Tensor],
    grid: Grid,
    names: SourceNames | None = None,
) -> Comparison:
    """Compare every tensor of `model` with the values of `quantized` and with `dense`, dtype included.

    These have the names of transformers' model, or with `names` those of the files that it was loaded from.
    """
    tied = set(model.all_tied_weights_keys or {})
    loaded = {name: tensor for name, tensor in model.state_dict().items() if name not in tied or name in dense}
    if names is not None:
        loaded = to_source_names(model, loaded, names)
    else:
        loaded = split_experts(model, loaded, lambda name: name not in dense)
    differing: list[str] = []
    layers: list[str] = []
    for layer, weight in quantized:
        name = f"{layer}.weight"
        layers.append(f"{layer}.")
        differing += _difference(name, loaded.get(name), grid.dequantize(weight))
    quantized_differing = len(differing)
    dense = {name: tensor for name, tensor in dense.items() if name.removesuffix("weight") not in layers}
    for name, tensor in dense.items():
        differing += _difference(name, loaded.get(name), tensor)
    left = [name for name in loaded if name not in dense and not name.startswith(tuple(layers))]
    differing += [f"{name}: not a tensor of the trained model" for name in left]
    return Comparison(
        num_quantized=len(layers),
        num_dense=len(dense),
        differing=tuple(differing),
        quantized_differing=quantized_differing,
    )


def measure_divergence(
    trained: PreTrainedModel, exported: PreTrainedModel, rollouts: Sequence[Rollout], max_tokens: int
) -> tuple[float, int]:
    """Measure KL(trained‖exported) in nats a token over the completions of `rollouts`; return their tokens, too."""
    payloads = Teacher(trained, max_tokens).hidden(rollouts)
    rows = [ScoredRollout(rollout=r, payload=p) for r, p in zip(rollouts, payloads, strict=True)]
    fidelity = student_fidelity(exported, output_head(exported), output_head(trained), rows, max_tokens)
    return fidelity.kl_to_teacher, fidelity.num_tokens


@torch.no_grad()
def compute_token_logprobs(model: PreTrainedModel, token_ids: IntArray) -> list[float]:
    """Compute the log-probability of every token but the first, in nats, as transformers does."""
    inputs = inputs_of_rows(model, [torch.from_numpy(token_ids.astype("int64"))], mode_of(model))
    logits = model(use_cache=False, **inputs).logits[0, :-1].float()
    return logits.log_softmax(-1).gather(-1, inputs["input_ids"][0, 1:, None])[:, 0].tolist()


def _difference(name: str, actual: Tensor | None, expected: Tensor) -> list[str]:
    if actual is None:
        return [f"{name}: missing"]
    if actual.shape != expected.shape:
        return [f"{name}: shape {list(actual.shape)} instead of {list(expected.shape)}"]
    if actual.dtype != expected.dtype:
        return [f"{name}: {actual.dtype} instead of {expected.dtype}"]
    expected = expected.to(actual.device)
    if torch.equal(actual, expected):
        return []
    unequal = actual != expected
    largest = (actual.double() - expected.double()).abs().max().item()
    return [f"{name}: {int(unequal.sum()):,} of {unequal.numel():,} values differ, by up to {largest:.3g}"]
