"""Whether vLLM can write with a model that brings its own code: by its Transformers backend, or by a class of its own.

The backend takes the model without its head (`AutoModel`), gives its attention another implementation, and makes logits
itself: the head's product, a `logit_scale` and a `final_logit_softcapping` of the configuration. Whatever else the
model's class does to its logits is not done.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from rayqd.config import Config
from rayqd.errors import ModelError
from rayqd.model.forward.mode import HeadForm
from rayqd.model.remote_code import find_remote_code
from rayqd.rollout.registry import engine_architectures

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def check_own_code(model: PreTrainedModel, head: HeadForm, directory: Path, config: Config) -> None:
    """Raise ModelError where `model`, on whose code the checkpoint in `directory` relies, is none that vLLM runs.

    `head`: what the model does to its logits. Nothing is asked of a run without rollouts, nor without a vLLM here.
    """
    if not config.is_on_policy or not find_remote_code(directory):
        return
    reason = explain_unservable(model, head)
    if not reason or not (supported := engine_architectures()):
        return
    if not supported.isdisjoint(model.config.architectures or [type(model).__name__]):
        return
    raise ModelError(
        f"vLLM, which writes the rollouts, cannot run the code in {directory}: {reason}; distil off-policy "
        "(distill.lmbda = 0), which needs no engine"
    )


def explain_unservable(model: PreTrainedModel, head: HeadForm) -> str:
    """Return why vLLM's Transformers backend does not compute what `model` computes; empty where it may."""
    config: Any = model.config
    name = type(model).__name__
    auto_map: dict[str, str] = getattr(config, "auto_map", None) or {}
    if "AutoModel" not in auto_map:
        return "auto_map in config.json names no AutoModel, the model without its head, of which vLLM makes its own"
    kind: Any = type(model)
    if not (kind.is_backend_compatible() or kind._can_set_attn_implementation()):
        return f"attention of {name} is not one that vLLM can replace (transformers' AttentionInterface)"
    text = config.get_text_config()
    known = HeadForm(
        scale=getattr(text, "logit_scale", None) or 1.0, cap=getattr(text, "final_logit_softcapping", None)
    )
    if (head.scale, head.cap) != (known.scale, known.cap):
        return f"{name} makes its logits in a way of its own ({head.words or 'unscaled'}), which vLLM does not"
    return ""
