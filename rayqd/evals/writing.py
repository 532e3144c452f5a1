"""A model of transformers goes on from prompts, many at a time; each row gets what it would get alone.

Letters: B rows of a call, V ids, T new tokens.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import psutil
import torch
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList

from rayqd.evals.language_model import own_attention
from rayqd.model.decoder_layers import decoder_layers
from rayqd.model.forward.mode import Batching
from rayqd.model.forward.of_model import mode_of
from rayqd.model.forward.rotary import frequency_class, reset_frequencies
from rayqd.model.load import UNLIMITED, output_head
from rayqd.model.token_limit import TokenLimit
from rayqd.types import IntArray

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_MOST_ROWS = 256  # more of them at a time make no token cheaper
_SHARE_OF_MEMORY = 0.25  # for keys and values
_MOST_BYTES_ON_A_HOST = 4 << 30  # of them: a container may have less than its host has free, and is killed beyond it
_ROWS_AT_ONCE = 32  # whose distributions are in memory in float64


@dataclass(frozen=True, slots=True, kw_only=True)
class Writing:
    """How completions are written."""

    ends: Sequence[int]  # ids that end one
    max_new_tokens: int
    seed: int
    max_tokens: int  # that go through a model at once where it only reads
    context_length: int = UNLIMITED  # of prompt and completion together
    num_ids: int | None = None  # the first ids, which student and teacher both have; None: all that a model has


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A completion to be written."""

    prompt_ids: IntArray  # [P]
    seed: tuple[int, ...] | None = None  # sampled at temperature 1 with it; None: always the likeliest token


@torch.no_grad()
def write(model: PreTrainedModel, requests: Sequence[Request], writing: Writing) -> list[IntArray]:
    """Return the completion of each request, [1 to T], its end included.

    What is sampled depends on the row's own seed, not on the device or on who shares its call, but for what sums in
    another order change. Raises WorkerError where a row alone does not fit in memory.
    """
    limit = TokenLimit(tokens=most_tokens(model), setting="eval.continuations", advice="lower rollout.max_new_tokens")
    written: dict[int, IntArray] = {}
    waiting = list(range(len(requests)))
    waiting.sort(key=lambda i: len(requests[i].prompt_ids), reverse=True)  # what may not fit comes first
    with own_attention(model), _plain_generation(model):
        while waiting:
            batch = waiting[: _count_first([requests[i] for i in waiting], model, writing, limit.tokens)]
            some = [requests[i] for i in batch]
            lengths = [len(some[0].prompt_ids) + _room(some[0], writing)] * len(batch)
            done = limit.attempt(lambda some=some: _write_together(model, some, writing), lengths)
            if done is not None:
                written |= zip(batch, done.result, strict=True)
                waiting = waiting[len(batch) :]
    return [written[i] for i in range(len(requests))]


def most_tokens(model: PreTrainedModel) -> int:
    """Return how many tokens' keys and values take their share of the free memory, were there no heads that share."""
    device = model.device
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available
    room = _SHARE_OF_MEMORY * free if device.type == "cuda" else min(_SHARE_OF_MEMORY * free, _MOST_BYTES_ON_A_HOST)
    width = output_head(model).shape[1]
    named = getattr(model.config.get_text_config(), "num_hidden_layers", None)
    layers = max(1, len(decoder_layers(model)), named or 0)  # code of the model's own may have layers of another class
    return int(room / (2 * layers * width * model.dtype.itemsize))


def _room(request: Request, writing: Writing) -> int:
    """Return how many tokens a completion may have: a model has no positions beyond its context."""
    return max(1, min(writing.max_new_tokens, writing.context_length - len(request.prompt_ids)))


@contextlib.contextmanager
def _plain_generation(model: PreTrainedModel) -> Iterator[None]:
    """Set the model's generation_config aside, of which `generate` takes whatever it is not told itself.

    Its penalties, forbidden ids or beams would give other completions than the model's distribution has.
    """
    from transformers import GenerationConfig

    before = model.generation_config
    model.generation_config = GenerationConfig()
    try:
        yield
    finally:
        model.generation_config = before


def _count_first(requests: Sequence[Request], model: PreTrainedModel, writing: Writing, max_tokens: int) -> int:
    """Return how many of the first requests, the longest prompt before the others, are written in one call.

    Prompts of several lengths are filled up on the left, which a model with nothing but attention does not see; others
    share a call with their like, or with none.
    """
    mode, longest, room = mode_of(model), len(requests[0].prompt_ids), _room(requests[0], writing)
    if mode.batching is Batching.ALONE:
        return 1
    number = max(1, min(_MOST_ROWS, max_tokens // (longest + room)))
    some = requests[:number]
    if mode.is_packed and frequency_class(model) is None:
        return sum(_room(each, writing) == room for each in some)
    return sum(len(each.prompt_ids) == longest for each in some)


def _write_together(model: PreTrainedModel, requests: Sequence[Request], writing: Writing) -> list[IntArray]:
    from transformers import GenerationConfig

    longest, room = max(len(each.prompt_ids) for each in requests), _room(requests[0], writing)
    filler = writing.ends[0] if writing.ends else 0
    ids = torch.full((len(requests), longest), filler, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for i, each in enumerate(requests):
        ids[i, longest - len(each.prompt_ids) :] = torch.from_numpy(each.prompt_ids.astype(np.int64))
        mask[i, longest - len(each.prompt_ids) :] = 1
    settings = GenerationConfig(
        max_new_tokens=room,
        do_sample=False,  # `_Draws` samples
        repetition_penalty=1.0,
        eos_token_id=list(writing.ends),
        pad_token_id=filler,
    )
    reset_frequencies(model)
    generate: Any = model.generate
    written = generate(
        ids.to(model.device),
        attention_mask=mask.to(model.device),
        generation_config=settings,
        logits_processor=LogitsProcessorList([_Draws(requests, longest, room, writing.num_ids, model.device)]),
    )
    rows = written[:, longest:].cpu().numpy().astype(np.int32)
    return [_until_end(row, writing.ends) for row in rows]


def _until_end(row: IntArray, ends: Sequence[int]) -> IntArray:
    """Cut off what follows a row's end, as others went on."""
    found = np.flatnonzero(np.isin(row, list(ends)))
    return row[: found[0] + 1] if len(found) else row


class _Draws(LogitsProcessor):
    """Leaves, of each row that is sampled, one id: where the row's next uniform number falls in the distribution.

    Ids beyond the first `num_ids` no row gets.
    """

    def __init__(
        self,
        requests: Sequence[Request],
        prompt_length: int,
        max_new_tokens: int,
        num_ids: int | None,
        device: torch.device,
    ) -> None:
        self._prompt_length = prompt_length
        self._num_ids = num_ids
        sampled = [(i, each.seed) for i, each in enumerate(requests) if each.seed is not None]
        self._rows = torch.tensor([i for i, _ in sampled], dtype=torch.long, device=device)
        draws = [np.random.default_rng(seed).random(max_new_tokens) for _, seed in sampled]
        self._draws = torch.from_numpy(np.array(draws).reshape(len(sampled), max_new_tokens)).to(device)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Return the logits `scores`, [B, V], with all ids but the drawn ones at -inf in the sampled rows."""
        step = input_ids.shape[1] - self._prompt_length
        if self._num_ids is not None:
            scores[:, self._num_ids :] = -torch.inf
        for rows, draws in zip(self._rows.split(_ROWS_AT_ONCE), self._draws[:, step].split(_ROWS_AT_ONCE), strict=True):
            if not len(rows):
                continue
            chosen = draw(scores[rows], draws)
            scores[rows] = torch.full_like(scores[rows], -torch.inf).scatter_(1, chosen[:, None], 0.0)
        return scores


def draw(logits: Tensor, uniform: Tensor) -> Tensor:
    """Return the ids [B] at which the distributions of `logits`, [B, V], first exceed `uniform`, [B], of [0, 1)."""
    reached = logits.double().softmax(-1).cumsum(-1)
    ids = torch.searchsorted(reached, (uniform * reached[:, -1])[:, None], right=True)[:, 0]
    return ids.clamp_(max=logits.shape[1] - 1)
