"""The payload of one's own that docs/distillation.md shows: trained on, kept, and refused in one line.

commands/test_sharded_on_ray.py has a whole run of it.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from rayqd.config import Config
from rayqd.config.load import load_config
from rayqd.config.resolved import to_toml
from rayqd.driver.preflight import check
from rayqd.errors import ConfigError
from rayqd.learner.learner import Learner
from rayqd.model.student import Student
from rayqd.teacher.check import check_payload
from rayqd.teacher.payloads import payload_spec
from rayqd.teacher.worker import TeacherWorker, teacher_loader
from rayqd.types import Rollout, ScoredRollout

PAGE = Path(__file__).parents[2] / "docs" / "distillation.md"
SOURCE = PAGE.read_text().partition("```python\n")[2].partition("```")[0]
NAME = "theirs.payloads:MeanLogit"
TEMPERATURE = 2.0


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The source file of theirs.payloads, in the working directory."""
    file = tmp_path / "theirs" / "payloads.py"
    file.parent.mkdir()
    file.write_text(SOURCE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield file
    _forget()


def _forget() -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "theirs"]:
        del sys.modules[name]
    importlib.invalidate_caches()


def config_of(tiny_config: Any, name: str = NAME, **sections: Any) -> Config:
    fixed = {"teacher": {"payload": name}, "model": {"dtype": "float32"}, "adapter": {"kind": "none"}}
    return tiny_config(**fixed, distill={"lmbda": 0.0, "temperature": TEMPERATURE}, **sections)


def centred_logit(model: Any, rollout: Rollout) -> torch.Tensor:
    """In float64, one rollout at a time, of the whole logits, [C]."""
    ids = torch.tensor([*rollout.prompt_ids.tolist(), *rollout.completion_ids.tolist()])
    logits = model(ids[None], lengths=[len(ids)]).logits[0, len(rollout.prompt_ids) - 1 : -1] / TEMPERATURE
    return torch.stack([row[token] - row.mean() for row, token in zip(logits, rollout.completion_ids, strict=True)])


def test_a_step_is_that_of_its_loss_in_float64(
    module: Path, tiny_model: Path, tiny_config: Any, make_rollouts: Any
) -> None:
    config = config_of(tiny_config, learner={"max_grad_norm": 1e9, "lr": 3e-5, "warmup_ratio": 0.0})
    check(config)
    rollouts = make_rollouts((5, 9), (17, 3), (2, 1))
    _, payloads = TeacherWorker(0, teacher_loader(config)).score(*rollouts)
    batch = [ScoredRollout(rollout=r, payload=p) for r, p in zip(rollouts, payloads, strict=True)]
    student = Student.load(tiny_model, config)

    teacher, rounded = (AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float64) for _ in range(2))
    for name, quantized in student.quantized_layers():
        rounded.get_submodule(name).weight.data = student.grid.dequantize(quantized).double()
    with torch.no_grad():
        targets = [centred_logit(teacher, rollout) for rollout in rollouts]
    errors = [centred_logit(rounded, r) - target for r, target in zip(rollouts, targets, strict=True)]
    expected = torch.cat(errors).square().sum() / 2 / 13
    expected.backward()

    learner = Learner(student, student.head, config)
    assert learner.step(0, batch, 13).loss == pytest.approx(expected.item(), rel=1e-4)
    compared = 0
    for name, parameter in student.parameters().items():
        if name.removesuffix(".weight") in dict(student.quantized_layers()):
            exact = rounded.get_parameter(name).grad
            assert exact is not None
            gradient = parameter.grad.double()
            passes = gradient != 0  # not where a code is clipped
            assert passes.float().mean() > 0.98, name
            torch.testing.assert_close(gradient[passes], exact[passes], rtol=1e-3, atol=1e-4 * exact.abs().max().item())
            compared += 1
    assert compared == 14
    for step in range(1, 4):
        last = learner.step(step, batch, 13).loss
    assert last < expected.item()


def test_what_is_kept_is_found_again_until_its_source_changes(
    module: Path, tiny_config: Any, make_rollouts: Any
) -> None:
    config = config_of(tiny_config)
    rollouts = make_rollouts((5, 9), (7, 3))

    def hits() -> int:
        report, _ = TeacherWorker(0, teacher_loader(config)).score(*rollouts)
        return report.num_cache_hits

    assert [hits(), hits()] == [0, 2]
    module.write_text(SOURCE.replace("logits.mean(-1)", "logits.mean(-1) + 1"))
    _forget()
    assert [hits(), hits()] == [0, 2]
    module.write_text(SOURCE)
    _forget()
    assert hits() == 2


def test_its_fields_and_its_name_are_in_the_key(module: Path, tiny_config: Any, make_rollouts: Any) -> None:
    cache = teacher_loader(config_of(tiny_config))().cache
    assert cache is not None
    (rollout,) = make_rollouts((5, 9))
    module.write_text(SOURCE + "\n\n@dataclass(frozen=True, kw_only=True)\nclass Other(MeanLogit):\n    pass\n")
    _forget()
    spec, other = (
        payload_spec(config_of(tiny_config, f"theirs.payloads:{name}"), 128) for name in ("MeanLogit", "Other")
    )
    changed = [spec, other, replace(spec, temperature=1.0), replace(spec, vocab_size=127)]
    assert len({cache.path(each, rollout) for each in changed}) == 4


def test_its_import_path_is_in_the_resolved_settings(module: Path, tiny_config: Any, tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_text(to_toml(config_of(tiny_config)))
    assert f'payload = "{NAME}"' in file.read_text()
    assert load_config([f"@{file}"]).teacher.payload == NAME


COMPUTE = "        logits = logits_of(states, head[: self.vocab_size]).float() / self.temperature\n"


@pytest.mark.parametrize(
    ("change", "by", "message"),
    [
        ("class MeanLogit(", "class Renamed(", "theirs.payloads has no MeanLogit"),
        ("class MeanLogit(PayloadSpec)", "class MeanLogit", r"is no subclass of rayqd\.teacher\.payloads\.PayloadSpec"),
        ("    def compute(", "    def compute_it(", "lacks compute"),
        ("    payload_type = MeanLogitPayload\n", "", "lacks payload_type, a subclass of rayqd.types.TeacherPayload"),
        (
            "@dataclass(frozen=True, kw_only=True)\nclass MeanLogit(",
            "class MeanLogit(",
            "is no frozen dataclass",
        ),
        ("def token_loss(", "def loss(", "MeanLogitPayload lacks the static method token_loss"),
        (
            "centred: Tensor, beta: float, temperature: float\n",
            "beta: float, temperature: float\n",
            "an unexpected keyword argument 'centred'",
        ),
        ("        del settings\n", "        raise KeyError(settings.name)\n", "from_settings raises KeyError: None"),
        (
            "    temperature: float\n    vocab_size",
            "    temperature: object\n    vocab_size",
            "its fields must be texts",
        ),
        (COMPUTE, "        raise RuntimeError('too\\nshort')\n", "compute raises RuntimeError: too short"),
        (COMPUTE, "        return None\n", "compute must return a MeanLogitPayload of random states, not NoneType"),
        (
            "centred=centred.cpu().numpy()",
            "centred=centred.cpu()",
            "centred must be an array or a WireTensor with a row",
        ),
        (
            "centred=centred.cpu().numpy()",
            "centred=centred[:2].cpu().numpy()",
            "centred must be an array or a WireTensor",
        ),
        (
            "(own - centred).square() / 2",
            "(own - centred).square().sum()",
            r"token_loss must return one number a token",
        ),
        ("(own - centred).square() / 2", "(own - centred).detach()", "token_loss must be finite, and differentiable"),
        (
            "(own - centred).square() / 2",
            "(own - centred).square() / 0",
            "token_loss must be finite, and differentiable",
        ),
        ("(own - centred).square() / 2", "(own - centred.mean()).square()", "token_loss mixes tokens"),
    ],
)
def test_what_it_lacks_is_said_in_one_line_before_anything_starts(
    module: Path, tiny_config: Any, change: str, by: str, message: str
) -> None:
    assert change in SOURCE
    changed = SOURCE.replace(change, by)
    if "object" in by:
        changed = changed.replace("return cls(temperature=temperature,", "return cls(temperature=object(),")
    module.write_text(changed)
    with pytest.raises(ConfigError, match=message) as caught:
        check_payload(config_of(tiny_config), 128)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(f"teacher.payload={NAME}")


def test_one_that_cannot_be_imported_is_refused_before_anything_starts(tiny_config: Any) -> None:
    with pytest.raises(ConfigError, match=r"^teacher\.payload=nowhere\.payloads:Payload: there is no module nowhere"):
        check(config_of(tiny_config, "nowhere.payloads:Payload"))
