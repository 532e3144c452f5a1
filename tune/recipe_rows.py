"""The recipe study's rows: which are read, in what order they are trained on, and which calibrate."""

from __future__ import annotations

from pathlib import Path

from rayqd.config import Config
from rayqd.data.calibration import calibration_sequences
from rayqd.data.examples import load_examples
from rayqd.data.plan import Plan
from rayqd.model.load import context_length, load_tokenizer
from rayqd.types import Example, IntArray

CALIBRATED_STEPS = 100  # more than any calibration takes


def load_rows(config: Config, file: Path, directory: Path) -> list[Example]:
    """Return all rows of a file of the study, with the tokens of the model in `directory`.

    Raises DataError of a file that is not there or a row that is not one.
    """
    source = config.data.model_copy(update={"source": str(file)})
    tokenizer, length = load_tokenizer(directory), context_length(directory)
    return list(load_examples(tokenizer, source, seed=0, num_needed=10**9, context_length=length).examples)


def training_plan(config: Config, num_rows: int) -> Plan:
    """Return which of `num_rows` rows each step trains on."""
    return Plan(num_examples=(num_rows,), batch_size=config.learner.batch_size, lmbda=0.0, seed=config.seed)


def calibration_rows(config: Config, rows: list[Example]) -> list[IntArray]:
    """Return the tokens of the first rows trained on that reach `quant.calibration_tokens`."""
    plan = training_plan(config, len(rows))
    in_order = (rows[planned.example] for step in range(CALIBRATED_STEPS) for planned in plan.step(step))
    return calibration_sequences(in_order, config.quant.calibration_tokens)
