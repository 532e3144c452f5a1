"""Whether a payload from outside can be computed, sent, kept and trained on, before anything is started."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from rayqd.config import Config
from rayqd.errors import ConfigError
from rayqd.extensions import check_signature, is_import_path, load_extension, source_digest
from rayqd.losses.output_head import OutputHead
from rayqd.model.forward.mode import HeadForm
from rayqd.model.load import make_head, torch_dtype
from rayqd.model.wire import from_wire
from rayqd.teacher.cache import TeacherIdentity
from rayqd.teacher.payloads import PayloadSpec
from rayqd.types import Rollout, TeacherPayload, WireTensor

_NUM_TOKENS, _WIDTH = 4, 8
_SETTING = "teacher.payload"

T = TypeVar("T")


def check_payload(config: Config, vocab_size: int, form: HeadForm | None = None) -> None:
    """Raise ConfigError where `teacher.payload` names a class from outside that lacks something, or fails on random
    states; `vocab_size` ids are in the output heads of teacher and student, and `form` is that of the teacher's."""
    path = config.teacher.payload
    if not is_import_path(path):
        return
    said = f"{_SETTING}={path}"
    spec_type = load_spec_type(path)
    spec = _attempt(
        f"{said}: from_settings",
        lambda: spec_type.from_settings(config.teacher, config.distill.temperature, vocab_size),
    )
    try:
        spec.cache_key(TeacherIdentity(weights="", dtype=config.model.dtype))
    except TypeError as error:
        raise ConfigError(f"{said}: its fields must be texts, numbers, switches, or tuples of them: {error}") from None
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(vocab_size, (_NUM_TOKENS,), generator=generator)
    payload = _probe_compute(spec, said, config, vocab_size, ids, generator, form or HeadForm())
    _probe_loss(payload, said, config, torch.randn(_NUM_TOKENS, vocab_size, generator=generator), ids)


def load_spec_type(path: str) -> type[PayloadSpec]:
    """Return the class that `path` names; raise ConfigError where it is none that rayqd can work with."""
    spec_type, said = load_extension(path, _SETTING), f"{_SETTING}={path}"
    if not (inspect.isclass(spec_type) and issubclass(spec_type, PayloadSpec)):
        raise ConfigError(f"{said} is no subclass of {PayloadSpec.__module__}.PayloadSpec")
    if inspect.isabstract(spec_type):
        raise ConfigError(f"{said} lacks {', '.join(sorted(spec_type.__abstractmethods__))}")
    _require_frozen_dataclass(spec_type, said)
    payload_type = getattr(spec_type, "payload_type", None)
    if not (inspect.isclass(payload_type) and issubclass(payload_type, TeacherPayload)):
        raise ConfigError(f"{said} lacks payload_type, a subclass of {TeacherPayload.__module__}.TeacherPayload")
    _require_frozen_dataclass(payload_type, f"{said}: {payload_type.__name__}")
    token_loss = getattr(payload_type, "token_loss", None)
    if not callable(token_loss):
        raise ConfigError(f"{said}: {payload_type.__name__} lacks the static method token_loss, what is trained on")
    names = [field.name for field in fields(payload_type)]
    check_signature(
        token_loss,
        f"{path}.token_loss",
        _SETTING,
        ["student_logits", "completion_ids"],
        ["beta", "temperature", *names],
    )
    if source_digest(spec_type) is None:
        raise ConfigError(f"{said} has no source file, by which payloads that are kept could be told from others")
    return spec_type


def _require_frozen_dataclass(cls: type, said: str) -> None:
    if not (is_dataclass(cls) and cls.__dataclass_params__.frozen):  # pyright: ignore
        raise ConfigError(f"{said} is no frozen dataclass: put @dataclass(frozen=True) above it")


def _probe_compute(
    spec: PayloadSpec,
    said: str,
    config: Config,
    vocab_size: int,
    ids: Tensor,
    generator: torch.Generator,
    form: HeadForm,
) -> TeacherPayload:
    """Return the payload of random states; raise ConfigError unless it has a row for each token."""
    dtype = torch_dtype(config.model.dtype)
    states, weight = (torch.randn(rows, _WIDTH, generator=generator).to(dtype) for rows in (_NUM_TOKENS, vocab_size))
    head = make_head(weight, None, form)
    if isinstance(head, OutputHead):
        said += f" (for a teacher whose logits are {form.words}, and are logits_of(states, head))"
    completion_ids = ids.int().numpy()
    rollout = Rollout(
        step=0,
        index=0,
        on_policy=False,
        prompt_ids=completion_ids[:1],
        completion_ids=completion_ids,
        policy_version=None,
    )
    payload = _attempt(f"{said}: compute", lambda: spec.compute(states, head, rollout))
    if payload is None or type(payload) is not spec.payload_type:
        raise ConfigError(
            f"{said}: compute must return a {spec.payload_type.__name__} of random states, not {type(payload).__name__}"
        )
    for name, value in payload.arrays().items():
        array = value.bits if isinstance(value, WireTensor) else value
        if not isinstance(array, np.ndarray) or array.shape[:1] != (_NUM_TOKENS,):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ConfigError(f"{said}: {name} must be an array or a WireTensor with a row for each completion token")
    return payload


def _probe_loss(payload: TeacherPayload, said: str, config: Config, logits: Tensor, ids: Tensor) -> None:
    """Raise ConfigError unless the loss is one finite number a token, with a gradient, of that token's row alone."""
    logits.requires_grad_()
    tensors = {
        name: from_wire(value) if isinstance(value, WireTensor) else torch.as_tensor(value)
        for name, value in payload.arrays().items()
    }
    beta, temperature = config.distill.beta, config.distill.temperature
    token_loss: Callable[..., Tensor] = getattr(type(payload), "token_loss")  # noqa: B009 (no attribute of the base)

    def compute(rows: slice) -> Tensor:
        fields = {name: tensor[rows] for name, tensor in tensors.items()}
        return _attempt(
            f"{said}: token_loss",
            lambda: token_loss(logits[rows], ids[rows], beta=beta, temperature=temperature, **fields),
        )

    values = compute(slice(None))
    if not isinstance(values, Tensor) or values.shape != (_NUM_TOKENS,):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ConfigError(f"{said}: token_loss must return one number a token, [{_NUM_TOKENS}]")
    if not values.requires_grad or not bool(values.isfinite().all()):
        raise ConfigError(f"{said}: token_loss must be finite, and differentiable with respect to the student's logits")
    halves = torch.cat([compute(slice(0, 2)), compute(slice(2, None))])
    if not torch.allclose(halves, values, rtol=1e-4, atol=1e-6):
        raise ConfigError(
            f"{said}: token_loss mixes tokens: each one's must follow from its own row; they come in chunks"
        )


def _attempt(said: str, call: Callable[[], T]) -> T:
    """Return what `call` returns; somebody else's code may raise anything, which becomes one line."""
    try:
        return call()
    except Exception as error:
        raise ConfigError(f"{said} raises {type(error).__name__}: {' '.join(str(error).split())}") from error
