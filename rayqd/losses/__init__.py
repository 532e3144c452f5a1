"""Divergences between student and teacher, and the negative log-likelihood: per token, in nats, float32."""

from rayqd.losses.chunked import chunked_generalized_jsd
from rayqd.losses.divergence import generalized_jsd
from rayqd.losses.nll import chunked_token_nll

__all__ = ["chunked_generalized_jsd", "chunked_token_nll", "generalized_jsd"]
