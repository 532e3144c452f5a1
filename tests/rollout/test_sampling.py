"""How a completion is sampled, and what a worker is sent for it."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rayqd.config import Config
from rayqd.config.sections import DataConfig, RolloutConfig
from rayqd.data import load_examples
from rayqd.data.chat_settings import chat_settings
from rayqd.data.conversation import row_parser
from rayqd.data.template import tokenize_prompt
from rayqd.pipeline import Weights
from rayqd.rollout.engine import Completion, SamplingRequest
from rayqd.rollout.fake import FakeEngine
from rayqd.rollout.sampling import SamplingRules, describe_sampling, sampling_request, with_model_sampling
from rayqd.rollout.worker import RolloutWorker
from rayqd.types import PlannedSequence
from tests.data.families import tokenizer_of
from tests.data.test_shapes import SHAPES, TOOLS

PROMPT = np.arange(5, dtype=np.int32)


def test_model_is_what_generation_config_says_and_else_nothing(tmp_path: Path) -> None:
    rollout = {"top_p": "model", "top_k": "model", "min_p": "model", "repetition_penalty": 1.1}
    asked = Config.model_validate({"rollout": rollout})
    (tmp_path / "generation_config.json").write_text(json.dumps({"top_p": 0.9, "top_k": 20, "temperature": 0.6}))
    found = with_model_sampling(asked, tmp_path).rollout
    # what is not in the file changes nothing; the temperature was not asked for
    assert (found.top_p, found.top_k, found.min_p, found.repetition_penalty, found.temperature) == (0.9, 20, 0, 1.1, 1)
    (tmp_path / "generation_config.json").unlink()
    alone = Config.model_validate({"rollout": {"top_p": "model"}})
    assert not with_model_sampling(alone, tmp_path).rollout.is_truncated


def test_a_request_has_all_settings_and_no_more_tokens_than_there_is_room_for() -> None:
    settings = RolloutConfig(
        min_new_tokens=9, max_new_tokens=20, top_p=0.9, top_k=7, min_p=0.1, repetition_penalty=1.2, stop=["!"]
    )
    request = sampling_request(settings, PROMPT, seed=3, stop_token_ids=(2, 90), most=6)
    assert (request.top_p, request.top_k, request.min_p, request.repetition_penalty) == (0.9, 7, 0.1, 1.2)
    assert (request.stop, request.stop_token_ids, request.seed) == (("!",), (2, 90), 3)
    assert (request.min_new_tokens, request.max_new_tokens) == (6, 6)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({}, []),
        ({"rollout": {"temperature": 0.6, "top_p": 0.9}}, ["temperature 0.6, top_p 0.9"]),
        ({"rollout": {"temperature": 2.0}, "distill": {"temperature": 2.0}}, []),
        ({"rollout": {"top_k": 5}, "distill": {"lmbda": 0.0}}, []),
    ],
)
def test_what_rollouts_are_not_samples_of_is_said(settings: Any, said: list[str]) -> None:
    config = Config.model_validate(settings)
    lines = describe_sampling(config.rollout, config)
    assert len(lines) == len(said)
    assert all(
        f"sampled with {what}, while the divergence is of the whole" in line
        for what, line in zip(said, lines, strict=True)
    )


class Recording(FakeEngine):
    """Keeps what it is asked."""

    def __init__(self) -> None:
        super().__init__(50)
        self.requests: list[SamplingRequest] = []

    def generate(self, requests: Sequence[SamplingRequest]) -> list[Completion]:
        self.requests += requests
        return super().generate(requests)


ROWS = [row for row, _ in SHAPES.values()] + [
    {"prompt": "Hi"},
    {"messages": SHAPES["messages (messages)"][1], "tools": TOOLS},
]


@pytest.mark.parametrize("row", ROWS, ids=range(len(ROWS)))
def test_a_worker_is_sent_the_prompt_that_the_data_path_renders(row: dict[str, Any], tmp_path: Path) -> None:
    tokenizer = tokenizer_of("qwen3")
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps(row) + "\n")
    data = DataConfig(source=str(file), min_room=1, chat_template_kwargs={"enable_thinking": False})
    examples = load_examples(tokenizer, data, seed=0, num_needed=1, context_length=2000, needs_answer=False).examples
    engine = Recording()
    worker = RolloutWorker(0, lambda: engine, lambda _: {})
    rules = SamplingRules(settings=RolloutConfig(max_new_tokens=4), stop_token_ids=(2, 4))
    sequence = PlannedSequence(step=0, index=0, example=0, on_policy=True, seed=1)
    worker.write([sequence], examples, Weights(version=0, tensors={}), rules)  # pyright: ignore[reportArgumentType]
    (request,) = engine.requests
    prompt = row_parser(data, prompt_only=True)(row)
    assert request.prompt_ids.tolist() == tokenize_prompt(tokenizer, prompt, chat_settings(data)).tolist()
    assert "".join(tokenizer.convert_ids_to_tokens(request.prompt_ids.tolist())).endswith("</think>\n\n")
    assert (request.stop_token_ids, request.min_new_tokens) == ((2, 4), 0)
