"""Payloads' cache keys: whatever changes the numbers changes the key, and nothing but the class has to be told."""

from __future__ import annotations

import itertools
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from rayqd.config import Config
from rayqd.config.settings import settings
from rayqd.model.wire import from_wire
from rayqd.teacher.cache import TeacherIdentity
from rayqd.teacher.payloads import SPECS, HiddenSpec, PayloadSpec, payload_spec
from rayqd.types import Rollout, TeacherPayload, WireTensor

V, D, C = 32, 8, 5
TEACHER = TeacherIdentity(weights="12ab", dtype="float32")


def config(payload: str = "hidden", temperature: float = 1.0, **teacher: Any) -> Config:
    sections = {"teacher": {"payload": payload, **teacher}, "distill": {"temperature": temperature}}
    return Config.model_validate(sections | {"rollout": {"temperature": temperature}})


@pytest.fixture
def asked(make_rollouts: Any) -> tuple[Tensor, Tensor, Rollout]:
    """States [C, D] and head [V + 4, D] of a teacher, and a rollout with ids of the student's."""
    torch.manual_seed(0)
    (rollout,) = make_rollouts((3, C), vocab_size=V - 8)
    ids = np.random.default_rng(0).integers(0, V - 8, (C, 4), dtype=np.int32)
    return torch.randn(C, D), torch.randn(V + 4, D), replace(rollout, on_policy=True, top_ids=ids)


def numbers(payload: TeacherPayload | None) -> tuple[bytes, ...]:
    """Everything that a payload says."""
    values = [getattr(payload, field.name) for field in fields(payload)]
    arrays = [from_wire(value).numpy() if isinstance(value, WireTensor) else value for value in values]
    return (type(payload).__name__.encode(), *(array.tobytes() for array in arrays))


def test_every_name_of_the_setting_has_a_class_that_computes_its_own_type(
    asked: tuple[Tensor, Tensor, Rollout],
) -> None:
    assert set(SPECS) == set(settings()["teacher.payload"].choices)
    for name, spec_type in SPECS.items():
        spec = payload_spec(config(name, top_k=4), V)
        assert type(spec) is spec_type
        assert type(spec.compute(*asked)) is spec_type.payload_type


def test_wherever_the_numbers_differ_so_does_the_key(asked: tuple[Tensor, Tensor, Rollout]) -> None:
    """Over every pair of settings that a payload could depend on; equal settings have equal keys."""
    tried: list[tuple[tuple[bytes, ...], str]] = []
    grid = itertools.product(SPECS, (1.0, 2.0), (3, 4), ("teacher", "student"), (V, V - 4))
    for name, temperature, top_k, top_k_of, vocab_size in grid:
        given = config(name, temperature, top_k=top_k, top_k_of=top_k_of)
        spec, same = (payload_spec(given, vocab_size) for _ in range(2))
        assert spec.cache_key(TEACHER) == same.cache_key(TEACHER)
        states, head, rollout = asked
        assert rollout.top_ids is not None
        own = replace(rollout, top_ids=rollout.top_ids[:, :top_k])
        tried.append((numbers(spec.compute(states, head, own)), spec.cache_key(TEACHER)))
    assert len({computed for computed, _ in tried}) == 1 + 2 + 16 + 4  # all but hidden and logits follow every setting
    for (one, its_key), (other, other_key) in itertools.combinations(tried, 2):
        assert one == other or its_key != other_key


@pytest.mark.parametrize("name", SPECS)
def test_changing_any_field_changes_the_key(name: str) -> None:
    spec = payload_spec(config(name), V)
    keys = {spec.cache_key(TEACHER)}
    for field in fields(spec):
        value = getattr(spec, field.name)
        keys.add(replace(spec, **{field.name: not value if isinstance(value, bool) else value + 1}).cache_key(TEACHER))
    assert len(keys) == 1 + len(fields(spec))


def test_payloads_and_teachers_do_not_share_keys() -> None:
    teachers = [TEACHER, replace(TEACHER, weights="12ac"), replace(TEACHER, dtype="float16")]
    specs = [payload_spec(config(name), V) for name in SPECS]
    assert len({spec.cache_key(teacher) for spec in specs for teacher in teachers}) == 3 * len(SPECS)


def test_hidden_states_have_one_key_at_every_temperature_and_vocabulary() -> None:
    specs: list[PayloadSpec] = [payload_spec(config(temperature=t), v) for t in (1.0, 2.0) for v in (V, V - 4)]
    assert {spec.cache_key(TEACHER) for spec in specs} == {HiddenSpec().cache_key(TEACHER)}
