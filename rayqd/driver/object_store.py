"""Whether Ray's object store has room for what a run holds there at once: the rest goes to its disk, which is slow."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

from rayqd.config import Config
from rayqd.data.example_set import ExampleSet
from rayqd.model.source import teacher_directories

_GIB = 2**30
_TOPK_BYTES = 8  # of an id and its log-probability
_ADVICE = {
    "logits": "take teacher.payload=hidden",
    "hidden": "take teacher.payload=topk",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """What lies in the store at once, while the learner is at work."""

    steps: int  # that are made ahead, and the one that is trained on
    bytes_a_step: float  # of the teacher's payloads: of the data's mean length, and of rollouts at their longest
    heldout_bytes: float

    @property
    def total(self) -> float:
        """Return all of it, in bytes."""
        return self.steps * self.bytes_a_step + self.heldout_bytes


def describe_store(
    config: Config, training: ExampleSet, heldout: ExampleSet, prefetch_steps: int, store_bytes: float
) -> str:
    """Say what to lower where the object stores of all nodes have `store_bytes`, too few for a run; else empty."""
    rows = (_completion_lengths(training), _completion_lengths(heldout))
    held = estimate_held(config, *rows, prefetch_steps, *_read_sizes(config))
    if held.total <= store_bytes:
        return ""
    instead = _ADVICE.get(config.teacher.payload)
    return (
        f"Ray's object store has {store_bytes / _GIB:.1f} GiB, and {held.steps} steps of payloads and the held-out "
        f"rows' take {held.total / _GIB:.1f}: Ray moves the rest to its disk, which is slow; in a container give a "
        "larger --shm-size, to `ray start` a larger --object-store-memory, or lower rollout.max_staleness, "
        "teacher.prefetch_steps, learner.batch_size or eval.num_rows"
        f"{f', or {instead}' if instead else ''}"
    )


def estimate_held(
    config: Config,
    training: Sequence[int],
    heldout: Sequence[int],
    prefetch_steps: int,
    width: int,
    vocab_size: int,
) -> Held:
    """Return what a run holds, by its rows' completion lengths in tokens, the teacher's width and its vocabulary.

    `prefetch_steps`: further ahead than staleness allows, of what the data gives. A staleness that is chosen while the
    run goes on keeps to the store's size by itself.
    """
    hidden = width * (4 if config.model.dtype == "float32" else 2)
    teacher = config.teacher
    a_token = {"hidden": hidden, "logits": 2 * vocab_size, "topk": _TOPK_BYTES * teacher.top_k}.get(teacher.payload, 4)
    mean = sum(training) / max(1, len(training))
    share = config.distill.lmbda
    tokens = config.learner.batch_size * ((1 - share) * mean + share * config.rollout.max_new_tokens)
    return Held(
        steps=1 + config.rollout.first_staleness + (prefetch_steps if share < 1 else 0),
        bytes_a_step=float(a_token * tokens),
        heldout_bytes=float(hidden * sum(heldout)),
    )


def _completion_lengths(rows: ExampleSet) -> list[int]:
    return [len(example.completion_ids) for example in rows.examples]


def _read_sizes(config: Config) -> tuple[int, int]:
    """Return the largest width and vocabulary of any teacher, 0 for what its config.json does not name."""
    from transformers import AutoConfig

    owns = [cast(Any, AutoConfig).from_pretrained(each).get_text_config() for each in teacher_directories(config)]
    width, vocab_size = (max(int(getattr(own, name, 0)) for own in owns) for name in ("hidden_size", "vocab_size"))
    return width, vocab_size
