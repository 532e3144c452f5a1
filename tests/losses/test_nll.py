"""chunked_token_nll against a float64 loop."""

import math

import pytest
import torch

from rayqd.errors import ConfigError, ModelError
from rayqd.losses import chunked_token_nll


def inputs(num_tokens=7, vocab_size=50, width=16):
    generator = torch.Generator().manual_seed(0)
    hidden, head = (torch.randn(n, width, generator=generator) for n in (num_tokens, vocab_size))
    return hidden, head, torch.randint(0, vocab_size, (num_tokens,), generator=generator)


@pytest.mark.parametrize("chunk_tokens", [1, 3, 7, 100, None])
def test_value_is_minus_the_log_probability(chunk_tokens):
    hidden, head, targets = inputs()
    nll = chunked_token_nll(hidden, head, targets, chunk_tokens=chunk_tokens)
    assert nll.dtype == torch.float32
    for t in range(len(targets)):
        scores = [math.fsum((hidden[t].double() * row).tolist()) for row in head.double()]
        expected = math.log(math.fsum(math.exp(s) for s in scores)) - scores[int(targets[t])]
        assert nll[t].item() == pytest.approx(expected, rel=1e-6, abs=2e-6)


def test_a_uniform_distribution_costs_the_logarithm_of_the_vocabulary():
    nll = chunked_token_nll(torch.zeros(2, 4), torch.ones(50_000, 4), torch.tensor([0, 49_999]))
    assert nll.tolist() == pytest.approx([math.log(50_000)] * 2, rel=1e-6)


def test_no_gradient_is_kept():
    hidden, head, targets = inputs()
    assert not chunked_token_nll(hidden.requires_grad_(), head.requires_grad_(), targets).requires_grad


def test_no_tokens_and_int32_targets_are_fine():
    hidden, head, targets = inputs()
    assert chunked_token_nll(hidden[:0], head, targets[:0]).shape == (0,)
    assert torch.equal(chunked_token_nll(hidden, head, targets.int()), chunked_token_nll(hidden, head, targets))


def test_what_does_not_fit_is_refused():
    hidden, head, targets = inputs()
    with pytest.raises(ModelError, match="the head has 50 ids"):
        chunked_token_nll(hidden, head, targets + 50)
    with pytest.raises(ModelError, match="target_ids"):
        chunked_token_nll(hidden, head, targets[1:])
    with pytest.raises(ModelError, match="bfloat16"):
        chunked_token_nll(hidden.bfloat16(), head, targets)
    with pytest.raises(ConfigError, match="chunk_tokens=0"):
        chunked_token_nll(hidden, head, targets, chunk_tokens=0)
