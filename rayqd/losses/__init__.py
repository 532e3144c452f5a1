"""Divergences between student and teacher, and the negative log-likelihood: per token, in nats, float32."""

from rayqd.losses.chunked import chunked_generalized_jsd
from rayqd.losses.divergence import curvature, generalized_jsd
from rayqd.losses.nll import chunked_token_nll
from rayqd.losses.rowwise import chunked_loss, chunked_rowwise
from rayqd.losses.sampled import sampled_reverse_kl, sampled_reverse_kl_k3
from rayqd.losses.skew import skew_kl, skew_reverse_kl
from rayqd.losses.topk import topk_buckets, topk_generalized_jsd
from rayqd.losses.total_variation import total_variation

__all__ = [
    "chunked_generalized_jsd",
    "chunked_loss",
    "chunked_rowwise",
    "chunked_token_nll",
    "curvature",
    "generalized_jsd",
    "sampled_reverse_kl",
    "sampled_reverse_kl_k3",
    "skew_kl",
    "skew_reverse_kl",
    "topk_buckets",
    "topk_generalized_jsd",
    "total_variation",
]
