"""Quantized weights as named tensors, two codes to a byte: what travels to the rollout workers and lies in files."""
