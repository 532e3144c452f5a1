"""Tokens of a row that are not trained on: the states of the others are those of the model's own forward pass."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM

from rayqd.model.hidden_states import completion_states
from rayqd.model.load import load_model
from rayqd.teacher.forward import Teacher
from rayqd.types import Example, Rollout

IDS = np.asarray([5, 9, 11, 4, 30, 31, 7, 8, 60, 61], dtype=np.int32)


def example(trained: list[int] | None, num_prompt_tokens: int = 7) -> Example:
    mask = None if trained is None else np.isin(np.arange(len(IDS)), trained)
    return Example(row=0, prompt_ids=IDS[:num_prompt_tokens], completion_ids=IDS[num_prompt_tokens:], trained=mask)


def test_a_rollout_from_data_begins_and_ends_with_what_is_trained_on() -> None:
    rollout = Rollout.from_data(example([3, 4, 8, 9]), step=0, index=0)
    assert rollout.prompt_ids.tolist() == IDS[:3].tolist()
    assert (rollout.completion_ids.tolist(), rollout.num_tokens) == (IDS[3:].tolist(), len(IDS))
    assert (rollout.target_ids.tolist(), rollout.num_loss_tokens) == ([4, 30, 60, 61], 4)
    without_last = Rollout.from_data(example([3, 4]), step=0, index=0)  # the last answer has weight 0
    assert (without_last.completion_ids.tolist(), without_last.num_tokens) == ([4, 30], 5)
    plain = Rollout.from_data(example(None), step=0, index=0)
    assert (plain.prompt_ids.tolist(), plain.target_ids.tolist()) == (IDS[:7].tolist(), IDS[7:].tolist())


def test_without_an_answer_the_prompt_is_what_is_measured() -> None:
    for without in (example(None, len(IDS)), example([])):
        rollout = Rollout.from_data(without, step=0, index=0)
        assert rollout.prompt_ids.tolist() == IDS[:1].tolist()
        assert rollout.num_loss_tokens == len(without.prompt_ids) - 1


def test_states_and_payloads_are_those_of_the_trained_tokens_alone(tiny_model: Path) -> None:
    trained = [3, 4, 8, 9]
    model = load_model(tiny_model, "float32")
    rollouts = [
        Rollout.from_data(example(trained), step=0, index=0),
        Rollout.from_data(example(None), step=0, index=1),
    ]
    eager: Any = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32, attn_implementation="eager")
    with torch.no_grad():
        own = eager.model(torch.from_numpy(IDS[None].astype(np.int64))).last_hidden_state[0]
        states = completion_states(model, rollouts)
    places = [place - 1 for place in [*trained, 7, 8, 9]]  # a state predicts the next token
    torch.testing.assert_close(states, own[places], atol=1e-5, rtol=1e-4)
    first, second = Teacher(model, 8).hidden(rollouts)
    assert (first.hidden.bits.shape[0], second.hidden.bits.shape[0]) == (4, 3)
