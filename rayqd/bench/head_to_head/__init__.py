"""Whole training steps of rayqd and of its peers, on the same model and the same requests: `rayqd bench run`."""
