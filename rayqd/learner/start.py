"""Where training starts from: the weights as they are, or moved to where GPTQ rounds them, and how good each is.

Made once a run, before the first step, and kept in the run's directory: a resumed run goes on from the same bits.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from rayqd.config import Config
from rayqd.errors import RunError, StorageError
from rayqd.evals.fidelity import Fidelity
from rayqd.model.calibrate import OnLayer, calibrate
from rayqd.model.load import load_model, torch_dtype
from rayqd.model.student import Student
from rayqd.quant import make_grid, quantizable_layers
from rayqd.types import IntArray

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ROUND_TO_NEAREST = "round-to-nearest INT4"
GPTQ = "GPTQ INT4"

Evaluate = Callable[[Student], Fidelity]
OnArm = Callable[[str, Fidelity], None]


class StartingPoint:
    """The directory `start/` of a run: the untrained arms' fidelity, and the weights if they were moved."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._directory = config.run_dir / "start"

    @property
    def is_new(self) -> bool:
        """Whether nothing has been made yet."""
        return not self._directory.is_dir()

    def make(
        self, source: Path, sequences: Sequence[IntArray], evaluate: Evaluate, on_arm: OnArm, on_layer: OnLayer
    ) -> None:
        """Measure round-to-nearest and, if `quant.init` is gptq, calibrate on `sequences` and measure that too.

        Does nothing where that was done before. `on_arm` hears of each arm as soon as it is measured. Raises
        StorageError when the result cannot be kept.
        """
        if not self.is_new:
            return
        config = self._config
        arms = {ROUND_TO_NEAREST: evaluate(Student.load(source, config))}
        on_arm(ROUND_TO_NEAREST, arms[ROUND_TO_NEAREST])
        weights = {}
        if config.quant.init == "gptq":
            model = load_model(source, config.model.dtype)
            grid = make_grid(config.quant, torch_dtype(config.model.dtype))
            batch_tokens = config.learner.microbatch_tokens
            calibrate(model, config.quant, grid, sequences, max_batch_tokens=batch_tokens, on_layer=on_layer)
            weights = {n: m.weight.detach().cpu().clone() for n, m in quantizable_layers(model, config.quant).items()}
            arms[GPTQ] = evaluate(Student(model, config))
            on_arm(GPTQ, arms[GPTQ])
        self._keep(arms, weights)

    def load_student(self, source: Path) -> Student:
        """The untrained student, its weights where `make` left them."""
        student_model = load_model(source, self._config.model.dtype)
        if self._config.quant.init == "gptq":
            self._move(student_model)
        return Student(student_model, self._config)

    @property
    def arms(self) -> dict[str, Fidelity]:
        """Fidelity of the untrained students, by name."""
        kept = json.loads((self._directory / "arms.json").read_text())
        return {arm: Fidelity(**fields) for arm, fields in kept.items()}

    def _move(self, model: PreTrainedModel) -> None:
        try:
            weights = load_file(self._directory / "weights.safetensors")
        except (OSError, SafetensorError) as error:
            raise RunError(f"{self._directory} cannot be read ({error}); remove the run's directory") from error
        for name, linear in quantizable_layers(model, self._config.quant).items():
            linear.weight.data.copy_(weights[name])

    def _keep(self, arms: Mapping[str, Fidelity], weights: Mapping[str, object]) -> None:
        aside = self._directory.with_name(".start.partial")
        shutil.rmtree(aside, ignore_errors=True)
        try:
            aside.mkdir(parents=True)
            (aside / "arms.json").write_text(json.dumps({arm: asdict(f) for arm, f in arms.items()}, indent=2))
            if weights:
                save_file(dict(weights), aside / "weights.safetensors")  # pyright: ignore[reportArgumentType]
            aside.rename(self._directory)
        except (OSError, SafetensorError) as error:
            shutil.rmtree(aside, ignore_errors=True)
            raise StorageError(f"{self._directory} could not be written: {error}; make room and run again") from error
