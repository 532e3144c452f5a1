"""One architecture of each kind from its configuration to its export, held against transformers alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rayqd.survey.architectures import default_config
from rayqd.survey.row import Row, Verdict
from rayqd.survey.trial import TOLERANCE, run_trial

_KL_ROUNDING = 1e-6  # nats a token, of logits in float32
_LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 1e4,
    "original_max_position_embeddings": 4096,
    "short_factor": [1.0] * 48,
    "long_factor": [1.0 + i / 10 for i in range(48)],
}
_EXACT: list[tuple[str, str, dict[str, Any]]] = [
    ("llama", "packed", {}),
    ("mistral", "packed", {}),  # a sliding window
    ("gemma2", "packed", {"attn_logit_softcapping": 0.3, "final_logit_softcapping": 3.0}),
    ("gemma3_text", "packed", {}),
    ("gemma3", "packed", {}),  # beside towers for images
    ("phi3", "packed", {"rope_parameters": _LONGROPE, "original_max_position_embeddings": 4096}),
    ("phi", "packed", {}),  # a head with a bias
    ("granite", "packed", {"logits_scaling": 8.0}),
    ("cohere", "packed", {"logit_scale": 0.0625}),
    ("gpt_oss", "packed", {}),  # sinks
    ("mixtral", "packed", {}),
    ("qwen3_moe", "packed", {}),
    ("deepseek_v3", "packed", {}),  # latent attention, shared experts
    ("stablelm", "padded", {}),  # drops keyword arguments
    ("nemotron", "padded", {}),
    ("bloom", "padded", {}),  # ALiBi
    ("gptj", "padded", {}),
    ("xglm", "padded", {}),
    ("lfm2", "padded", {}),  # convolutions
    ("falcon_h1", "padded", {"lm_head_multiplier": 0.1}),
    ("jamba", "padded", {}),  # a layer whose weight is read past it
    ("nemotron_h", "padded", {}),
    ("bamba", "padded", {}),
    ("zamba2", "padded", {}),  # layers that are shared
    ("qwen3_5_text", "padded", {}),
]
_REFUSED = [
    ("gpt2", "keeps its layers as transformers' Conv1D"),
    ("falcon", "keeps its layers as FalconLinear"),
    ("roberta", "depend on tokens that follow"),
]


def _try(architecture: str, directory: Path, changes: dict[str, Any]) -> Row:
    def make() -> Any:
        config = default_config(architecture)
        return type(config).from_dict({**config.to_dict(), **changes})

    return run_trial(make, Row(architecture=architecture, class_name="", verdict=Verdict.FAILED), directory)


@pytest.mark.slow
@pytest.mark.parametrize(("architecture", "batching", "changes"), _EXACT, ids=[name for name, _, _ in _EXACT])
def test_run_eval_export_and_transformers_agree(
    architecture: str, batching: str, changes: dict[str, Any], tmp_path: Path
) -> None:
    row = _try(architecture, tmp_path, changes)
    assert (row.verdict, row.words, row.batching) == (Verdict.EXACT, "", batching)
    assert max(row.differences.values()) <= TOLERANCE
    assert row.kl["run"] == pytest.approx(row.kl["transformers"], abs=_KL_ROUNDING)
    assert row.kl["eval"] == pytest.approx(row.kl["transformers"], abs=_KL_ROUNDING)
    assert row.kl["transformers"] > 50 * _KL_ROUNDING  # 4 bits cost something
    assert row.num_quantized > 0


@pytest.mark.slow
@pytest.mark.parametrize(("architecture", "words"), _REFUSED)
def test_what_cannot_be_done_is_refused_in_a_line(architecture: str, words: str, tmp_path: Path) -> None:
    row = _try(architecture, tmp_path, {})
    assert row.verdict is Verdict.REFUSED
    assert words in row.words
    assert not row.differences


@pytest.mark.slow
def test_a_wrong_number_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rayqd.survey.trial.plain_kl", lambda *_: 1.0)
    row = _try("llama", tmp_path, {})
    assert row.verdict is Verdict.WRONG
    assert "transformers has 1" in row.words
