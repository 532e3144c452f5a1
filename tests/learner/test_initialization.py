"""Where training starts: the students that are measured are the ones that training and resuming get."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from rayqd.events import EvalEvent, Fidelity, StatusEvent
from rayqd.learner.initialization import Initialization
from rayqd.learner.rollout_weights import collect_rollout_weights, pack_weights
from rayqd.model.student import Student
from tests.model.calibrating import sequences


@pytest.mark.parametrize(("init", "arm"), [("rtn", None), ("gptq", "GPTQ INT4"), ("awq", "AWQ INT4")])
def test_the_student_that_is_loaded_is_the_one_that_was_measured(
    init: str, arm: str | None, tiny_config: Any, tiny_model: Path
) -> None:
    config = tiny_config(quant={"init": init})
    measured: list[dict[str, Tensor]] = []

    def evaluate(student: Student) -> Fidelity:
        measured.append({name: tensor.clone() for name, tensor in student.model.state_dict().items()})
        return Fidelity(kl_to_teacher=0.5, total_variation=0.4, top1_agreement=0.7, perplexity=2.0, num_tokens=3)

    start = Initialization(config)
    reported: list[EvalEvent | StatusEvent] = []
    start.make(tiny_model, sequences(), evaluate, reported.append)
    measured_arms = [event.arm.name for event in reported if isinstance(event, EvalEvent)]
    assert measured_arms == ["round-to-nearest INT4", *([arm] if arm else [])] == [arm.name for arm in start.arms]

    loaded = Initialization(config).load_student(tiny_model).model.state_dict()
    same = {name for name, tensor in loaded.items() if torch.equal(tensor, measured[-1][name])}
    assert loaded.keys() == same  # the adapters' first values too
    norm = "model.layers.0.input_layernorm.weight"
    assert torch.equal(loaded[norm], measured[0][norm]) == (init != "awq")


def test_rollout_workers_get_the_norms_only_where_awq_moved_them(tiny_config: Any, tiny_model: Path) -> None:
    config = tiny_config(quant={"init": "awq"})
    student = Student.load(tiny_model, config)
    more = collect_rollout_weights(student, config).keys() - pack_weights(student).keys()
    assert more == {name for name in student.dense_tensors() if "norm" in name}
    assert collect_rollout_weights(student, tiny_config()).keys() == pack_weights(student).keys()
