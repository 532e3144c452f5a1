"""GPTQ on our own grid: the column recursion, and the scales that it rounds to."""

from rayqd.quant.gptq.solve import DAMPING_RETRIES, gptq

__all__ = ["DAMPING_RETRIES", "gptq"]
