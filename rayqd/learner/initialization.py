"""Where training starts from: the weights as they are, or moved to where GPTQ or AWQ rounds them; how good each is.

Made once a run, before the first step, and kept in the run's directory: a resumed run goes on from the same bits.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch.distributed.device_mesh import DeviceMesh

from rayqd.config import Config
from rayqd.config.sections import QuantConfig
from rayqd.errors import RunError, StorageError
from rayqd.events import Arm, ArmKind, Fidelity
from rayqd.files import replace_directory
from rayqd.model.calibration import OnLayer, calibrate
from rayqd.model.load import load_model, torch_dtype
from rayqd.model.student import Student
from rayqd.quant import make_grid
from rayqd.runs.paths import START
from rayqd.types import IntArray

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Evaluate = Callable[[Student], Fidelity]
OnArm = Callable[[Arm, Fidelity], None]


def untrained_arm(method: str, quant: QuantConfig) -> Arm:
    """Return the arm that `method`, one of quant.method, makes without training."""
    return Arm(kind=ArmKind(method), format=quant.format)


class StartingPoint:
    """The directory `start/` of a run: the untrained arms' fidelity, and the weights if they were moved."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._directory = config.run_dir / START

    @property
    def is_new(self) -> bool:
        """Whether nothing has been made yet."""
        return not self._directory.is_dir()

    def make(
        self, source: Path, sequences: Sequence[IntArray], evaluate: Evaluate, on_arm: OnArm, on_layer: OnLayer
    ) -> None:
        """Measure round-to-nearest and, if `quant.init` is another, calibrate on `sequences` and measure that too.

        Does nothing where that was done before. `on_arm` hears of each arm as soon as it is measured. Raises
        StorageError when the result cannot be kept.
        """
        if not self.is_new:
            return
        config = self._config
        quant = config.quant
        rounded, moved = untrained_arm("rtn", quant), untrained_arm(quant.init, quant)
        arms = {rounded: evaluate(Student(load_model(source, config.model.dtype), config, trainable=False))}
        on_arm(rounded, arms[rounded])
        weights = {}
        if quant.init != "rtn":
            model = load_model(source, config.model.dtype)
            changed = calibrate(
                model,
                quant,
                make_grid(quant, torch_dtype(config.model.dtype)),
                sequences,
                method=quant.init,
                max_batch_tokens=config.learner.microbatch_tokens,
                on_layer=on_layer,
            )
            weights = {n: t.cpu().clone() for n, t in model.state_dict().items() if n in changed}
            arms[moved] = evaluate(Student(model, config, trainable=False))
            on_arm(moved, arms[moved])
        self._keep(arms, weights)

    def load_student(self, source: Path, mesh: DeviceMesh | None = None) -> Student:
        """The untrained student, its weights where `make` left them, and sharded over `mesh` if one is given."""
        student_model = load_model(source, self._config.model.dtype)
        if self._config.quant.init != "rtn":
            self._move(student_model)
        return Student(student_model, self._config, mesh=mesh)

    @property
    def arms(self) -> dict[Arm, Fidelity]:
        """Return the fidelity of the untrained students."""
        kept = json.loads((self._directory / "arms.json").read_text())
        return {Arm.from_name(name): Fidelity(**fields) for name, fields in kept.items()}

    def _move(self, model: PreTrainedModel) -> None:
        try:
            weights = load_file(self._directory / "weights.safetensors")
        except (OSError, SafetensorError) as error:
            raise RunError(f"{self._directory} cannot be read ({error}); remove the run's directory") from error
        own = model.state_dict()
        for name, tensor in weights.items():
            own[name].copy_(tensor)

    def _keep(self, arms: Mapping[Arm, Fidelity], weights: Mapping[str, object]) -> None:
        try:
            with replace_directory(self._directory) as partial:
                (partial / "arms.json").write_text(
                    json.dumps({arm.name: asdict(f) for arm, f in arms.items()}, indent=2)
                )
                if weights:
                    save_file(dict(weights), partial / "weights.safetensors")  # pyright: ignore[reportArgumentType]
        except (OSError, SafetensorError) as error:
            raise StorageError(f"{self._directory} could not be written: {error}; make room and run again") from error
