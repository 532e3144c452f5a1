"""What rayqd must know of a model's forward pass to compute what the model itself computes of each row alone."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Batching(StrEnum):
    """How several rows go through a model in one call, from the fastest to the slowest."""

    PACKED = "packed"  # end to end, without padding, with rayqd's attention
    PADDED = "padded"  # one below the other, filled up on the right, with the model's own attention
    ALONE = "alone"  # one row a call, with the model's own attention


class StateSource(StrEnum):
    """Where the states that the output head multiplies come from."""

    BASE_MODEL = "base_model"  # `last_hidden_state` of the model without its head
    HEAD_INPUT = "head_input"  # what the model hands to its head, where something lies between the two


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadForm:
    """What makes logits of a state h: cap · tanh((scale · W h + bias_scale · b) / cap), without the tanh if no cap."""

    scale: float = 1.0
    bias_scale: float = 1.0
    cap: float | None = None

    @property
    def is_plain(self) -> bool:
        """Return whether the logits are the product of weight and state, but for a bias."""
        return self == HeadForm()

    @property
    def words(self) -> str:
        """Format `logits scaled by 0.125, capped at 30`; empty for a plain product."""
        scaled = f"scaled by {self.scale:g}" if self.scale != 1.0 else ""
        capped = f"capped at {self.cap:g}" if self.cap is not None else ""
        return " and ".join(filter(None, (scaled, capped)))


@dataclass(frozen=True, slots=True, kw_only=True)
class ForwardMode:
    """How to run one architecture, as `probe.find_mode` found it."""

    batching: Batching
    attention: str  # as transformers' `attn_implementation`
    own_attention: str = "eager"  # the fastest of transformers' own that computes the model's, for masks and caches
    states: StateSource
    head: HeadForm
    reason: str = ""  # why rows are not packed

    @property
    def is_packed(self) -> bool:
        """Return whether rows go end to end, the fast way."""
        return self.batching is Batching.PACKED

    @property
    def words(self) -> str:
        """Say in a line what is not the fast way, and what it costs; empty for packed rows."""
        if self.is_packed:
            return ""
        cost = {
            Batching.PADDED: "rows are filled up to one length, and what is filled up is computed in vain",
            Batching.ALONE: "each row is a call of its own, which on a GPU takes several times as long",
        }[self.batching]
        return f"rows of this architecture cannot be packed end to end ({self.reason}): {cost}"
