"""Rows that go through a model together get the states that the model's own eager forward computes of each alone."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from rayqd.errors import ModelError
from rayqd.losses.output_head import logits_of
from rayqd.model.forward import of_model
from rayqd.model.forward.batches import batch_rows
from rayqd.model.forward.mode import Batching, HeadForm
from rayqd.model.forward.of_model import mode_of
from rayqd.model.forward.probe import find_mode
from rayqd.model.hidden_states import completion_states
from rayqd.model.load import load_head, load_model, output_head
from rayqd.types import Rollout
from tests.tiny_models import tiny_causal_model, tiny_config

# Prompts and completions: rows above and below a window of 8 and a rotary embedding's length of 32, two of one length.
_ROWS = [(3, 4), (20, 30), (5, 6), (30, 20), (10, 25)]
_PACKED = ["llama", "qwen2", "qwen3", "gemma", "glm4", "smollm3", "olmo2", "phi", "gpt_neox", "starcoder2"]
_PACKED_MOE = ["mixtral", "qwen3_moe", "deepseek_v3", "glm4_moe"]
_PADDED = ["stablelm", "nemotron", "lfm2", "falcon_h1", "bamba", "jamba", "nemotron_h", "zamba2", "qwen3_5_text"]
_PADDED_DENSE = ["bloom", "xglm", "falcon", "gptj", "mpt", "recurrent_gemma", "mamba2"]


def _rollouts() -> list[Rollout]:
    random = np.random.default_rng(1)
    return [
        Rollout(
            step=0,
            index=i,
            on_policy=False,
            prompt_ids=random.integers(3, 120, p, dtype=np.int32),
            completion_ids=random.integers(3, 120, c, dtype=np.int32),
            policy_version=None,
        )
        for i, (p, c) in enumerate(_ROWS)
    ]


def _fresh(config: Any, attention: str = "eager") -> PreTrainedModel:
    return tiny_causal_model(config, attention=attention)


def _own_states(config: Any, rollout: Rollout) -> Tensor:
    """Compute what the output head is called with for one row, by a model that has seen no other row."""
    model = _fresh(config)
    captured: list[Tensor] = []
    head = model.get_output_embeddings()
    head.register_forward_pre_hook(lambda _, args: captured.append(args[0]))  # pyright: ignore
    ids = np.concatenate([rollout.prompt_ids, rollout.completion_ids]).astype(np.int64)
    with torch.no_grad():
        model(input_ids=torch.from_numpy(ids)[None], use_cache=False)
    return captured[0][0, len(rollout.prompt_ids) - 1 : -1]


def _check(config: Any) -> Batching:
    rollouts = _rollouts()
    model = _fresh(config)
    with torch.no_grad():
        states = completion_states(model, rollouts).split([r.num_loss_tokens for r in rollouts])
    for together, rollout in zip(states, rollouts, strict=True):
        expected = _own_states(config, rollout)
        torch.testing.assert_close(together, expected, rtol=1e-3, atol=2e-4 * float(expected.abs().max()))
    return mode_of(model).batching


def _timed(model_type: str) -> Any:
    """Mark those whose scans take seconds without a kernel."""
    return pytest.param(model_type, marks=pytest.mark.slow) if model_type in ("jamba", "nemotron_h") else model_type


@pytest.mark.parametrize("model_type", [*_PACKED, *_PACKED_MOE])
def test_rows_go_end_to_end_where_that_is_exact(model_type: str) -> None:
    assert _check(tiny_config(model_type)) is Batching.PACKED


@pytest.mark.parametrize("model_type", [_timed(name) for name in (*_PADDED, *_PADDED_DENSE)])
def test_what_leaks_between_packed_rows_is_padded_instead(model_type: str) -> None:
    assert _check(tiny_config(model_type)) is Batching.PADDED


_ATTENTION: list[tuple[str, dict[str, Any]]] = [
    ("mistral", {}),  # a window of 8
    ("gemma3_text", {}),
    ("olmo3", {}),
    ("cohere2", {}),
    ("gemma2", {"attn_logit_softcapping": 0.3}),
    ("gpt_oss", {}),  # sinks
    ("granite_swa", {}),
    ("mimo_v2_flash", {}),
]


@pytest.mark.parametrize(("model_type", "changes"), _ATTENTION, ids=[name for name, _ in _ATTENTION])
def test_windows_capped_scores_and_sinks_are_packed(model_type: str, changes: dict[str, Any]) -> None:
    assert _check(tiny_config(model_type, **changes)) is Batching.PACKED


def test_transformers_own_sdpa_is_not_trusted_with_capped_scores() -> None:
    assert find_mode(tiny_config("gemma2", attn_logit_softcapping=0.3)).own_attention == "eager"
    assert find_mode(tiny_config("gpt_oss")).own_attention == "eager"
    assert find_mode(tiny_config("llama")).own_attention == "sdpa"


_FACTORS = [1.0 + 0.3 * i for i in range(8)]
_LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 1e4,
    "original_max_position_embeddings": 32,
    "short_factor": [1.0] * 8,
    "long_factor": _FACTORS,
}


def test_rows_share_a_call_only_with_rows_of_the_same_longrope_factors() -> None:
    config = tiny_config("phi3", rope_parameters=_LONGROPE, original_max_position_embeddings=32)
    assert _check(config) is Batching.PACKED
    batches = batch_rows(_fresh(config), [7, 50, 32, 33], 1000)
    assert batches == [[0, 2], [1, 3]]  # 32 tokens are not beyond the 32 of the original length


def test_rows_beyond_the_length_of_dynamic_scaling_share_a_call_at_equal_lengths() -> None:
    rope = {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 1e4}
    config = tiny_config("llama", rope_parameters=rope, max_position_embeddings=32)
    assert _check(config) is Batching.PACKED
    assert batch_rows(_fresh(config), [50, 7, 40, 50, 30], 1000) == [[1, 4], [2], [0, 3]]


def test_a_padded_batch_counts_what_is_filled_up() -> None:
    model = _fresh(tiny_config("lfm2"))
    assert batch_rows(model, [40, 10, 12, 11], 40) == [[1, 3, 2], [0]]  # 3 x 12 fit, 4 x 40 do not
    assert batch_rows(model, [40, 10, 12, 10], 40, allow_padding=False) == [[1, 3], [2], [0]]


def test_packed_rows_keep_their_order() -> None:
    model = _fresh(tiny_config("llama"))
    assert batch_rows(model, [5, 4, 3, 9, 20], 10) == [[0, 1], [2], [3], [4]]


def test_the_reason_and_the_cost_are_said() -> None:
    assert "packed attention was not told where rows begin" in find_mode(tiny_config("stablelm")).words
    assert "states off by" in find_mode(tiny_config("lfm2")).words
    assert not find_mode(tiny_config("llama")).words


_HEADS: list[tuple[str, dict[str, Any], HeadForm]] = [
    ("granite", {"logits_scaling": 8.0}, HeadForm(scale=1 / 8, bias_scale=1 / 8)),
    ("cohere", {"logit_scale": 0.0625}, HeadForm(scale=0.0625, bias_scale=0.0625)),
    ("falcon_h1", {"lm_head_multiplier": 0.1}, HeadForm(scale=0.1, bias_scale=0.1)),
    ("gemma2", {"final_logit_softcapping": 3.0}, HeadForm(cap=3.0)),
    ("recurrent_gemma", {"logits_soft_cap": 2.0}, HeadForm(cap=2.0)),
    ("nanochat", {"final_logit_softcapping": 2.0}, HeadForm(cap=2.0)),
    ("minicpm3", {"dim_model_base": 16}, HeadForm(scale=16 / 64)),
    ("phi", {}, HeadForm()),  # a head with a bias
    ("gptj", {}, HeadForm()),
    ("modernbert-decoder", {}, HeadForm()),  # and a layer between the model and its head
]


@pytest.mark.parametrize(("model_type", "changes", "form"), _HEADS, ids=[name for name, _, _ in _HEADS])
def test_logits_of_the_states_are_the_model_s_own(model_type: str, changes: dict[str, Any], form: HeadForm) -> None:
    config = tiny_config(model_type, **changes)
    found = find_mode(config).head
    assert (found.scale, found.bias_scale) == pytest.approx((form.scale, form.bias_scale), rel=1e-5)
    assert found.cap == form.cap
    model, rollouts = _fresh(config), _rollouts()
    with torch.no_grad():
        logits = logits_of(completion_states(model, rollouts), output_head(model))
        parts = logits.split([r.num_loss_tokens for r in rollouts])
        for own, rollout in zip(parts, rollouts, strict=True):
            ids = np.concatenate([rollout.prompt_ids, rollout.completion_ids]).astype(np.int64)
            expected = _fresh(config)(input_ids=torch.from_numpy(ids)[None], use_cache=False).logits[0]
            expected = expected[len(rollout.prompt_ids) - 1 : -1]
            torch.testing.assert_close(own, expected, rtol=1e-3, atol=2e-4 * float(expected.abs().max()))


def test_the_head_of_a_checkpoint_is_that_of_the_loaded_model(tmp_path: Path) -> None:
    for model_type, changes in (("granite", {"logits_scaling": 8.0}), ("phi", {}), ("gemma2", {})):
        model = _fresh(tiny_config(model_type, **changes))
        model.save_pretrained(tmp_path / model_type)
        loaded, alone = output_head(model), load_head(tmp_path / model_type, "float32")
        states = torch.randn(5, 64, generator=torch.Generator().manual_seed(0))
        assert torch.equal(logits_of(states, loaded), logits_of(states, alone))


def _saved(model_type: str, directory: Path, **changes: Any) -> Path:
    _fresh(tiny_config(model_type, **changes)).save_pretrained(directory)
    return directory


def test_the_loaded_weights_are_tried_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = _saved("lfm2", tmp_path)
    assert mode_of(load_model(directory, "float32")).batching is Batching.PADDED
    packed = find_mode(tiny_config("llama"))  # as if the probe had not seen that rows leak
    monkeypatch.setattr(of_model, "find_mode", lambda _: packed)
    with pytest.raises(ModelError, match="Lfm2ForCausalLM: states of rows in one call are off by"):
        load_model(directory, "float32")


def test_logits_that_the_loaded_model_makes_otherwise_are_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = _saved("granite", tmp_path, logits_scaling=8.0)
    load_model(directory, "float32")
    plain = find_mode(tiny_config("llama"))
    monkeypatch.setattr(of_model, "find_mode", lambda _: plain)
    with pytest.raises(ModelError, match="GraniteForCausalLM: logits from states are off by"):
        load_model(directory, "float32")


@pytest.mark.parametrize("model_type", ["roberta", "xlm-roberta", "ernie"])
def test_a_model_that_sees_what_follows_is_refused(model_type: str) -> None:
    with pytest.raises(ModelError, match="depend on tokens that follow"):
        find_mode(tiny_config(model_type))


def test_gradients_of_padded_rows_are_those_of_each_row_alone() -> None:
    config = tiny_config("lfm2")
    model, rollouts = _fresh(config), _rollouts()
    completion_states(model, rollouts).square().sum().backward()
    together = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    for rollout in rollouts:
        completion_states(model, [rollout]).square().sum().backward()
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            scale = float(parameter.grad.abs().max())
            torch.testing.assert_close(together[name], parameter.grad, rtol=1e-3, atol=1e-4 * scale)


def test_a_model_of_few_tokens_is_probed_with_those_that_it_has() -> None:
    config = tiny_config("llama", vocab_size=20)
    assert find_mode(config).batching is Batching.PACKED
