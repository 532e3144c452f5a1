"""GPTQ, AWQ and AutoRound over a whole model, decoder layer by decoder layer."""

from rayqd.model.calibration.sequential import OnLayer, calibrate, check_method

__all__ = ["OnLayer", "calibrate", "check_method"]
