"""Whether `distill.loss` can be trained on, before anything is started."""

from __future__ import annotations

import torch
from torch import Tensor

from rayqd.config import Config
from rayqd.errors import ConfigError
from rayqd.extensions import is_import_path
from rayqd.losses.registry import LossOfLogits, load_loss

_NUM_TOKENS, _VOCAB_SIZE = 4, 16


def check_loss(config: Config) -> None:
    """Raise ConfigError where loss and payload do not fit, and where a loss from outside fails on random logits."""
    name, payload = config.distill.loss, config.teacher.payload
    if is_import_path(payload):
        if name != "jsd":
            raise ConfigError(
                f"distill.loss={name}: teacher.payload={payload} has a loss of its own; leave this one out"
            )
        return
    loss = load_loss(name)
    if payload not in loss.payloads:
        raise ConfigError(
            f"distill.loss={name} cannot be computed from teacher.payload={payload}: it needs "
            f"{' or '.join(loss.payloads)}"
        )
    if is_import_path(name) and loss.of_logits:
        _probe(loss.of_logits, config)


def _probe(loss: LossOfLogits, config: Config) -> None:
    """Try `loss` on random logits: one finite number a token, of that token alone, with a finite gradient."""
    said = f"distill.loss={config.distill.loss}"
    generator = torch.Generator().manual_seed(0)
    student, teacher = 2 * torch.randn(2, _NUM_TOKENS, _VOCAB_SIZE, generator=generator)
    student.requires_grad_()

    def compute(student: Tensor, teacher: Tensor) -> Tensor:
        try:
            return loss(student, teacher, beta=config.distill.beta, temperature=config.distill.temperature)
        except Exception as error:
            reason = " ".join(str(error).split())
            raise ConfigError(f"{said} raises {type(error).__name__} on random logits: {reason}") from error

    values = compute(student, teacher)
    if not isinstance(values, Tensor) or values.shape != (_NUM_TOKENS,):  # pyright: ignore[reportUnnecessaryIsInstance]
        got = f"the shape {list(values.shape)}" if isinstance(values, Tensor) else type(values).__name__  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ConfigError(
            f"{said} returns {got} for logits [{_NUM_TOKENS}, {_VOCAB_SIZE}]: it must return one number a token"
        )
    _check_gradient(values, student, said)
    halves = torch.cat([compute(student[rows], teacher[rows]) for rows in (slice(0, 2), slice(2, None))])
    if not _close(halves, values):
        raise ConfigError(f"{said} mixes tokens: each one's loss must follow from its own logits, which come in chunks")
    if config.teacher.payload == "logits" and not _close(compute(student, teacher - teacher.amax(-1, True)), values):
        raise ConfigError(
            f"{said} changes when all logits of a token move together, and teacher.payload=logits sends them less the "
            "token's largest: set teacher.payload to hidden"
        )


def _check_gradient(values: Tensor, student: Tensor, said: str) -> None:
    gradient = torch.zeros_like(student)
    if values.requires_grad:
        (gradient,) = torch.autograd.grad(values.sum(), student, materialize_grads=True)
    if not gradient.any():
        raise ConfigError(f"{said} has no gradient with respect to the student's logits")
    for what, numbers in (("value", values), ("gradient", gradient)):
        if not bool(numbers.isfinite().all()):
            raise ConfigError(f"{said} has a {what} that is inf or nan on random logits")


def _close(a: Tensor, b: Tensor) -> bool:
    return torch.allclose(a.float(), b.float(), rtol=1e-4, atol=1e-6)
