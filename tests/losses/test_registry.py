"""The losses that distill.loss can name, and what is refused before a run starts."""

from __future__ import annotations

from typing import Any, get_args

import pytest
import torch

from rayqd.config import Config
from rayqd.config.load import load_config
from rayqd.config.sections import DistillConfig
from rayqd.config.sections.base import ImportPath
from rayqd.errors import ConfigError
from rayqd.losses import generalized_jsd
from rayqd.losses.check import check_loss
from rayqd.losses.registry import LOSSES, load_loss

OUTSIDE = "tests.losses.outside_losses"


def config_of(loss: str, payload: str = "hidden", **distill: Any) -> Config:
    return Config.model_validate({"distill": {"loss": loss, **distill}, "teacher": {"payload": payload}})


def test_every_name_that_the_setting_takes_is_a_loss_and_no_other() -> None:
    names, outside = get_args(DistillConfig.model_fields["loss"].annotation)
    assert set(get_args(names)) == LOSSES.keys()
    assert outside == ImportPath


@pytest.mark.parametrize("name", ["jsd", "skew_kl", "skew_reverse_kl"])
@pytest.mark.parametrize("beta", [0.0, 0.1, 0.5, 0.9])
def test_divided_by_its_curvature_a_loss_is_the_kl_of_two_close_distributions(name: str, beta: float) -> None:
    generator = torch.Generator().manual_seed(0)
    student, noise = torch.randn(2, 5, 40, generator=generator)
    teacher = student + 0.02 * noise
    loss = LOSSES[name]
    assert loss.of_logits is not None
    normalized = loss.of_logits(student, teacher, beta=beta, temperature=1.0) / loss.curvature(beta)
    torch.testing.assert_close(normalized, generalized_jsd(student, teacher, beta=0.0), rtol=0.05, atol=1e-7)


@pytest.mark.parametrize(
    ("loss", "payloads"),
    [
        ("jsd", {"hidden", "logits", "topk", "sampled"}),
        ("skew_kl", {"hidden", "logits", "topk"}),
        ("skew_reverse_kl", {"hidden", "logits", "topk"}),
        ("total_variation", {"hidden", "logits", "topk"}),
        ("k3", {"sampled"}),
        (f"{OUTSIDE}:squared_log_ratio", {"hidden", "logits"}),
    ],
)
@pytest.mark.parametrize("payload", ["hidden", "logits", "topk", "sampled"])
def test_a_payload_that_a_loss_cannot_be_computed_from_is_refused(loss: str, payloads: set[str], payload: str) -> None:
    config = config_of(loss, payload, beta=0.5 if loss.startswith("skew") else 1.0)
    if payload in payloads:
        check_loss(config)
        return
    with pytest.raises(ConfigError, match=f"distill.loss={loss} cannot be computed from teacher.payload={payload}"):
        check_loss(config)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (
            "without_temperature",
            "is called as without_temperature(student_logits, teacher_logits, beta=..., temperature",
        ),
        ("mean", "returns the shape [] for logits [4, 16]: it must return one number a token"),
        ("number", "returns float for logits [4, 16]"),
        ("batch_normalized", "mixes tokens: each one's loss must follow from its own logits"),
        ("detached", "has no gradient with respect to the student's logits"),
        ("not_finite", "has a value that is inf or nan on random logits"),
        ("infinite_gradient", "has a gradient that is inf or nan on random logits"),
        ("failing", "raises RuntimeError on random logits: mat1 and mat2 shapes cannot be multiplied"),
        ("absent", "tests.losses.outside_losses has no absent"),
    ],
)
def test_a_loss_from_outside_is_tried_and_refused_in_one_line(function: str, message: str) -> None:
    with pytest.raises(ConfigError) as raised:
        check_loss(config_of(f"{OUTSIDE}:{function}"))
    text = str(raised.value)
    assert text.startswith(f"distill.loss={OUTSIDE}:{function}")
    assert message in text
    assert "\n" not in text


def test_a_loss_of_logits_themselves_needs_a_payload_that_keeps_what_they_have_in_common() -> None:
    check_loss(config_of(f"{OUTSIDE}:squared_error"))
    with pytest.raises(ConfigError, match=r"set teacher\.payload to hidden"):
        check_loss(config_of(f"{OUTSIDE}:squared_error", "logits"))


def test_a_loss_from_outside_gets_float32() -> None:
    student, teacher = torch.randn(2, 3, 7, dtype=torch.bfloat16)
    loss = load_loss(f"{OUTSIDE}:squared_log_ratio").of_logits
    assert loss is not None
    value = loss(student, teacher, beta=0.5, temperature=2.0)
    assert value.dtype == torch.float32
    assert torch.equal(value, loss(student.float(), teacher.float(), beta=0.5, temperature=2.0))


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--distill.loss=total_variatoin", "did you mean total_variation?"),
        (
            "--distill.loss=mypackage.losses",
            "must be one of jsd, skew_kl, skew_reverse_kl, total_variation, k3, or pack",
        ),
        ("--distill.loss=skew_kl", "loss=skew_kl is 0 everywhere at beta=1: set beta below 1; DistiLLM's is 0.1"),
    ],
)
def test_a_loss_that_there_cannot_be_is_refused_where_it_is_given(flag: str, message: str) -> None:
    with pytest.raises(ConfigError) as raised:
        load_config([flag])
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)
    assert "(and" not in str(raised.value)
