"""An optimizer step against an independent one, and against itself under everything that must not change it."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, get_scheduler
from trl.experimental.gkd import GKDTrainer

from rayqd.config import Config
from rayqd.errors import ModelError
from rayqd.learner.checkpoint import Checkpoints, load_checkpoint
from rayqd.learner.distributed import SingleProcess
from rayqd.learner.initialization import Initialization
from rayqd.learner.learner import Learner
from rayqd.learner.schedule import learning_rate
from rayqd.model.hidden_states import completion_states, teacher_states
from rayqd.model.load import load_model
from rayqd.model.student import Student
from rayqd.model.wire import from_wire, to_wire
from rayqd.teacher.forward import Teacher
from rayqd.types import HiddenPayload, ScoredRollout
from tests.losses.outside_losses import squared_log_ratio

LENGTHS = [(5, 9), (17, 3), (2, 1), (30, 14), (8, 8)]


@pytest.fixture
def batch(tiny_model: Any, make_rollouts: Any) -> list[ScoredRollout]:
    rollouts = make_rollouts(*LENGTHS)
    payloads = Teacher(load_model(tiny_model, "float32"), 8192).hidden(rollouts)
    return [ScoredRollout(rollout=r, payload=p) for r, p in zip(rollouts, payloads, strict=True)]


def make(tiny_model: Any, config: Config, **settings: Any) -> Learner:
    student = Student.load(tiny_model, config)
    return Learner(student, student.head, config, **settings)


def config_of(tiny_config: Any, **sections: Any) -> Config:
    model = {"dtype": "float32", **sections.pop("model", {})}
    return tiny_config(model=model, **sections)


def gradients(learner: Learner, share: list[ScoredRollout], num_loss_tokens: int = 35) -> dict[str, torch.Tensor]:
    """Of one step, after the sum over workers and before clipping."""
    learner.settings = learner.settings.model_copy(update={"max_grad_norm": 1e9})
    learner.step(0, share, num_loss_tokens)
    return {name: p.grad.clone() for name, p in learner.student.parameters().items() if p.grad is not None}


def assert_close(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys()
    assert len(a) > 0
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=1e-4, atol=1e-7)


@pytest.mark.slow
@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
def test_the_loss_is_trl_s_on_padded_rows_and_whole_logits(
    tiny_model: Any, tiny_config: Any, batch: list[ScoredRollout], beta: float
) -> None:
    config = config_of(tiny_config, distill={"beta": beta, "lmbda": 0.0, "normalize": False})
    learner = make(tiny_model, config)
    dense = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    rounded = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    for name, quantized in learner.student.quantized_layers():
        rounded.get_submodule(name).weight.data = learner.student.grid.dequantize(quantized)
    width = max(p + c for p, c in LENGTHS)
    ids, mask = torch.zeros(len(batch), width, dtype=torch.long), torch.zeros(len(batch), width, dtype=torch.long)
    labels = torch.full((len(batch), width), -100)
    for row, scored in enumerate(batch):
        prompt, completion = scored.rollout.prompt_ids, scored.rollout.completion_ids
        total = len(prompt) + len(completion)
        ids[row, :total] = torch.tensor([*prompt.tolist(), *completion.tolist()])
        mask[row, :total] = 1
        labels[row, len(prompt) : total] = ids[row, len(prompt) : total]
    with torch.no_grad():
        expected = GKDTrainer.generalized_jsd_loss(
            rounded(ids, attention_mask=mask).logits[:, :-1],
            dense(ids, attention_mask=mask).logits[:, :-1],
            labels=labels[:, 1:],
            beta=beta,
        )
    actual = learner.step(0, batch, sum(c for _, c in LENGTHS)).loss
    assert actual == pytest.approx(expected.item(), rel=2e-4)
    assert actual > 1e-3


def test_a_step_on_a_loss_from_outside_is_adamw_on_the_loss_of_whole_logits(
    tiny_model: Any, tiny_config: Any, batch: list[ScoredRollout]
) -> None:
    """The same student, whole logits in float64, autograd, and torch's own AdamW."""
    loss = "tests.losses.outside_losses:squared_log_ratio"
    distill = {"loss": loss, "beta": 0.3, "temperature": 1.5}
    config = config_of(tiny_config, distill=distill, learner={"max_grad_norm": 1e9})
    num_loss_tokens = sum(c for _, c in LENGTHS)
    reference = make(tiny_model, config)
    parameters = list(reference.student.parameters().values())
    logits = (
        completion_states(reference.student.model, [s.rollout for s in batch]).double()
        @ reference.student.head.double().t()
    )
    teacher = teacher_states(batch, logits.device).double() @ reference.student.head.double().t()
    expected = squared_log_ratio(logits, teacher, beta=0.3, temperature=1.5).sum() / num_loss_tokens
    expected.backward()
    optimizer = torch.optim.AdamW(parameters, lr=learning_rate(0, config.learner), weight_decay=0.0)
    optimizer.step()

    learner = make(tiny_model, config)
    result = learner.step(0, batch, num_loss_tokens)
    assert result.loss == pytest.approx(expected.item(), rel=1e-4)
    assert expected.item() > 1e-3
    for ours, theirs in zip(learner.student.parameters().values(), parameters, strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-3, atol=1e-7)
        # Adam's first step is lr · sign of the gradient, so that only its size is left to compare.
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("microbatch_tokens", [1, 20, 50])
def test_microbatches_do_not_change_the_gradient(
    tiny_model: Any, tiny_config: Any, batch: list[ScoredRollout], microbatch_tokens: int
) -> None:
    whole = gradients(make(tiny_model, config_of(tiny_config)), batch)
    split = config_of(tiny_config, learner={"microbatch_tokens": microbatch_tokens})
    assert_close(gradients(make(tiny_model, split), batch), whole)


@pytest.mark.parametrize("kind", ["lora", "none"])
def test_workers_that_share_a_batch_get_the_gradient_of_one_that_has_it_all(
    tiny_model: Any, tiny_config: Any, batch: list[ScoredRollout], kind: str
) -> None:
    config = config_of(tiny_config, adapter={"kind": kind})
    whole = gradients(make(tiny_model, config), batch)
    shares = [batch[:2], batch[2:]]
    parts = [gradients(make(tiny_model, config), share) for share in shares]
    assert_close({name: parts[0][name] + parts[1][name] for name in whole}, whole)


def test_loss_and_every_gradient_are_all_reduced(tiny_model: Any, tiny_config: Any, batch: list[ScoredRollout]) -> None:
    seen: list[int] = []

    class Counting(SingleProcess):
        def all_reduce_sum(self, tensors: Sequence[torch.Tensor]) -> None:
            seen.append(len(tensors))

    learner = make(tiny_model, config_of(tiny_config), group=Counting())
    learner.step(0, batch, 35)
    assert seen == [1 + len(learner.student.parameters())]


def test_a_worker_without_sequences_still_joins_the_step(tiny_model: Any, tiny_config: Any) -> None:
    learner = make(tiny_model, config_of(tiny_config))
    assert learner.step(0, [], 35).loss == 0.0


def test_gradient_checkpointing_does_not_change_the_gradient(
    tiny_model: Any, tiny_config: Any, batch: list[ScoredRollout]
) -> None:
    plain = gradients(make(tiny_model, config_of(tiny_config)), batch)
    config = config_of(tiny_config, learner={"gradient_checkpointing": True})
    assert_close(gradients(make(tiny_model, config), batch), plain)


@pytest.mark.parametrize("kind", ["lora", "none"])
def test_a_resumed_learner_goes_on_to_the_bit(
    tiny_model: Any, tiny_config: Any, batch: list[ScoredRollout], tmp_path: Any, kind: str
) -> None:
    config = config_of(tiny_config, adapter={"kind": kind})
    straight = make(tiny_model, config)
    for step in range(2):
        straight.step(step, batch, 35)
    path = Checkpoints(tmp_path, keep=1).save(2, straight.state_dict())
    for step in range(2, 4):
        straight.step(step, batch, 35)

    resumed = make(tiny_model, config)
    resumed.load_state_dict(load_checkpoint(path))
    for step in range(2, 4):
        resumed.step(step, batch, 35)
    expected, actual = straight.state_dict(), resumed.state_dict()
    for group in ("student", "optimizer"):
        assert actual[group].keys() == expected[group].keys()
        for name in expected[group]:
            assert torch.equal(actual[group][name], expected[group][name]), name


@pytest.mark.slow
def test_training_brings_the_student_nearer_to_its_teacher(
    tiny_model: Any, tiny_config: Any, batch: list[ScoredRollout]
) -> None:
    config = config_of(tiny_config, learner={"lr": 1e-2, "steps": 30, "warmup_ratio": 0.1}, distill={"beta": 0.0})
    learner = make(tiny_model, config)
    losses = [learner.step(step, batch, 35).loss for step in range(30)]
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize(("name", "theirs"), [("linear",) * 2, ("cosine",) * 2, ("constant", "constant_with_warmup")])
def test_the_learning_rate_is_transformers_s_one_step_on(tiny_config: Any, name: str, theirs: str) -> None:
    settings = tiny_config(learner={"schedule": name, "steps": 50, "warmup_ratio": 0.2, "lr": 2e-4}).learner
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=2e-4)
    scheduler = get_scheduler(theirs, optimizer, num_warmup_steps=10, num_training_steps=51)
    for step in range(50):
        optimizer.step()
        scheduler.step()
        assert learning_rate(step, settings) == pytest.approx(scheduler.get_last_lr()[0], rel=1e-9)
    assert learning_rate(0, settings) > 0


@pytest.mark.parametrize("kind", ["lora", "none"])
def test_what_is_trained_is_float32_whatever_the_model_computes_in(
    tiny_model: Any, tiny_config: Any, batch: list[ScoredRollout], kind: str
) -> None:
    learner = make(tiny_model, tiny_config(adapter={"kind": kind}))
    assert {p.dtype for p in learner.student.model.parameters() if not p.requires_grad} == {torch.bfloat16}
    before = {name: p.detach().clone() for name, p in learner.student.parameters().items()}
    learner.settings = learner.settings.model_copy(update={"lr": 1e-6, "warmup_ratio": 0.0})
    hidden = [dataclasses.replace(s, payload=_in_bfloat16(s)) for s in batch]
    learner.step(0, hidden, 35)
    for name, parameter in learner.student.parameters().items():
        assert parameter.dtype == torch.float32
        moments = learner.optimizer.state[parameter]
        assert moments["exp_avg"].dtype == moments["exp_avg_sq"].dtype == torch.float32
        if not name.endswith("lora_A.default.weight"):  # B is zero at first, and so is A's gradient
            assert not torch.equal(parameter, before[name])  # in 16 bits a step this small rounds to nothing


def _in_bfloat16(scored: ScoredRollout) -> HiddenPayload:
    return HiddenPayload(hidden=to_wire(from_wire(scored.payload.hidden).bfloat16()))


def test_adapters_start_alike_on_every_worker_whatever_ran_before(tiny_model: Any, tiny_config: Any) -> None:
    config = tiny_config()
    start = Initialization(config)
    torch.manual_seed(1)
    first = start.load_student(tiny_model).state_dict()
    torch.manual_seed(2)
    again = start.load_student(tiny_model).state_dict()
    assert any(tensor.any() for tensor in first.values())
    assert all(torch.equal(first[name], again[name]) for name in first)


def with_nan(scored: ScoredRollout) -> ScoredRollout:
    assert isinstance(scored.payload, HiddenPayload)
    hidden = from_wire(scored.payload.hidden).clone()
    hidden[0, 0] = torch.nan
    return dataclasses.replace(scored, payload=HiddenPayload(hidden=to_wire(hidden)))


def test_a_step_whose_gradient_is_nan_changes_nothing_and_one_too_many_ends_the_run(
    tiny_model: Any, tiny_config: Any, batch: list[ScoredRollout]
) -> None:
    config = config_of(tiny_config, learner={"max_bad_steps": 2})
    calm, disturbed = make(tiny_model, config), make(tiny_model, config)
    updates: list[str] = []
    disturbed.before_update = lambda: updates.append("update")
    bad = [batch[0], with_nan(batch[1]), *batch[2:]]
    calm.step(0, batch, 35)
    disturbed.step(0, batch, 35)
    for step in (1, 2):
        result = disturbed.step(step, bad, 35)
        assert result.is_skipped
        assert not math.isfinite(result.grad_norm)
    assert disturbed.step(3, batch, 35) == calm.step(3, batch, 35)
    for group, tensors in calm.state_dict().items():
        assert all(torch.equal(disturbed.state_dict()[group][name], tensor) for name, tensor in tensors.items())
    assert len(updates) == 4
    with pytest.raises(ModelError, match=r"^step 5: the gradient is inf or nan .*learner\.max_bad_steps=2 such steps"):
        disturbed.step(4, bad, 35)
