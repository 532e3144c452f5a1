"""The top-k divergence with its tail, and the sampled reverse KL, as TRL computes them for self-distillation."""

import pytest
import torch

from rayqd.losses import sampled_reverse_kl, topk_generalized_jsd

pytestmark = pytest.mark.slow  # importing trl takes several seconds


@pytest.fixture(scope="module")
def trl_losses():
    return pytest.importorskip("trl.experimental.sdpo.loss_utils")


def logits():
    generator = torch.Generator().manual_seed(0)
    return 2 * torch.randn(2, 8, 300, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("k", [1, 5, 100])
@pytest.mark.parametrize("beta", [0.0, 0.1, 0.5, 0.9, 1.0])
def test_top_k_value_and_gradient_are_trls(trl_losses, beta, k):
    student, teacher = logits()
    theirs_input = student.clone().requires_grad_()
    theirs = trl_losses.compute_topk_self_distillation_loss(
        theirs_input, teacher, distillation_topk=k, distillation_alpha=beta, distillation_add_tail=True
    )
    ids = student.topk(k).indices  # there the support is the student's
    ours_input = student.float().requires_grad_()
    ours = topk_generalized_jsd(ours_input, ids, teacher.log_softmax(-1).gather(1, ids).float(), beta=beta)
    torch.testing.assert_close(ours.double(), theirs, rtol=1e-6, atol=5e-7)
    grads = (
        torch.autograd.grad(ours.sum(), ours_input)[0].double(),
        torch.autograd.grad(theirs.sum(), theirs_input)[0],
    )
    torch.testing.assert_close(*grads, rtol=1e-4, atol=1e-7)


def test_the_sampled_gradient_is_trls(trl_losses):
    student, teacher = logits()
    ids = torch.distributions.Categorical(logits=student).sample()[:, None]
    grads = []
    for loss_of in (
        lambda x: trl_losses.compute_sampled_token_self_distillation_loss(
            x, teacher, ids[:, 0], distillation_alpha=1.0
        ),
        lambda x: sampled_reverse_kl(*(side.log_softmax(-1).gather(1, ids)[:, 0] for side in (x, teacher))),
    ):
        inputs = student.clone().requires_grad_()
        grads.append(torch.autograd.grad(loss_of(inputs).sum(), inputs)[0])
    torch.testing.assert_close(grads[1], grads[0], rtol=1e-6, atol=1e-6)
