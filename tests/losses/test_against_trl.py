"""The same divergence as TRL's GKDTrainer computes."""

import pytest
import torch

from rayqd.losses import generalized_jsd

pytestmark = pytest.mark.slow  # importing trl takes several seconds


@pytest.fixture(scope="module")
def trl_loss():
    gkd = pytest.importorskip("trl.experimental.gkd")
    return gkd.GKDTrainer.generalized_jsd_loss


@pytest.mark.parametrize("temperature", [0.7, 1.0, 2.0])
@pytest.mark.parametrize("beta", [0.0, 0.1, 0.5, 0.9, 1.0])
def test_value_and_gradient_are_trls(trl_loss, beta, temperature):
    generator = torch.Generator().manual_seed(0)
    student, teacher = 3 * torch.randn(2, 8, 300, generator=generator, dtype=torch.float64)
    theirs_input = student.clone().requires_grad_()
    theirs = trl_loss(theirs_input[None], teacher[None], beta=beta, temperature=temperature, reduction="none")[0].sum(
        -1
    )

    ours_input = student.float().requires_grad_()
    ours = generalized_jsd(ours_input, teacher.float(), beta=beta, temperature=temperature)
    grads = (
        torch.autograd.grad(ours.double().sum(), ours_input)[0].double(),
        torch.autograd.grad(theirs.sum(), theirs_input)[0],
    )
    torch.testing.assert_close(ours.double(), theirs, rtol=5e-6, atol=0)
    torch.testing.assert_close(*grads, rtol=1e-4, atol=1e-7)
