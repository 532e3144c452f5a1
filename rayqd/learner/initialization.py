"""Where training starts: from the weights as they are, or as calibration changes them; how good each is untrained.

Made once a run, before the first step, and kept in the run's directory: a resumed run goes on from the same bits.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file  # pyright: ignore[reportUnknownVariableType]
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

from rayqd.checksums import find_damage, seal
from rayqd.config import Config
from rayqd.config.sections import QuantConfig
from rayqd.errors import RunError, StorageError
from rayqd.events import Arm, ArmKind, EvalEvent, Fidelity, NoticeEvent, StatusEvent
from rayqd.export.logits import compute_packed_states
from rayqd.files import replace_directory, set_aside
from rayqd.losses.output_head import Head
from rayqd.metrics.fidelity import TextFields
from rayqd.model.calibration import calibrate
from rayqd.model.layer_outputs import OutputReference
from rayqd.model.load import load_model, output_head, torch_dtype
from rayqd.model.student import Student
from rayqd.quant import make_grid
from rayqd.runs.paths import START
from rayqd.runs.start import read_arms, read_layer_errors, read_teacher_text, write_arms, write_layer_errors
from rayqd.spans import span
from rayqd.types import IntArray

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Evaluate = Callable[[Student], Fidelity]
MeasureText = Callable[["PreTrainedModel", Head], TextFields]
Report = Callable[[EvalEvent | NoticeEvent | StatusEvent], None]


_OUTPUTS = "outputs.safetensors"  # of the original's layers


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerErrors:
    """What left the original's layers, and how far from it is what leaves those of each untrained arm, by name."""

    reference: OutputReference
    by_arm: Mapping[Arm, Mapping[str, float]]


def untrained_arm(method: str, quant: QuantConfig) -> Arm:
    """Return the arm that `method`, one of quant.method, makes without training."""
    return Arm(kind=ArmKind(method), format=quant.format)


class Initialization:
    """The directory `start/` of a run: the untrained arms' fidelity, and the weights that calibration changed."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._directory = config.run_dir / START

    @property
    def is_new(self) -> bool:
        """Return whether nothing has been made yet."""
        return not self._directory.is_dir()

    def set_damaged_aside(self) -> list[str]:
        """Put what was made before aside where it is not whole; return the line that says so, if it was."""
        if self.is_new or (fault := find_damage(self._directory)) is None:
            return []
        aside = set_aside(self._directory, "damaged")
        return [f"{self._directory} is damaged: {fault}; it is made again, and the old one is now {aside.name}"]

    def make(
        self,
        source: Path,
        sequences: Sequence[IntArray],
        evaluate: Evaluate,
        report: Report,
        measure_text: MeasureText | None = None,
        row: IntArray | None = None,
    ) -> None:
        """Measure round-to-nearest and, if `quant.init` is another, calibrate on `sequences` and measure that too.

        `measure_text`: of the model as it is, the teacher, which is nowhere else beside the text. `row`: the tokens,
        [T], on which the layers' outputs are compared with those of the model as it is.

        Does nothing where that was done before. Each arm is reported as soon as it is measured. Raises StorageError
        when the result cannot be kept.
        """
        if not self.is_new:
            return
        quant = self._config.quant
        arms: dict[Arm, Fidelity] = {}
        errors: dict[Arm, dict[str, float]] = {}

        def measure(method: str, model: PreTrainedModel) -> None:
            arm = untrained_arm(method, quant)
            with span(f"evaluate {arm.name}"):
                student = Student(model, self._config, trainable=False)
                arms[arm] = evaluate(student)
                if reference:
                    errors[arm] = reference.errors(student.model, compute_packed_states)
            report(EvalEvent(step=0, arm=arm, fidelity=arms[arm]))

        model = self._load(source)
        of_teacher: TextFields | None = None
        if measure_text is not None:
            with span("evaluate teacher's text"):
                of_teacher = measure_text(model, output_head(model))
        reference = None
        if row is not None:
            with span("run the original"):
                reference = OutputReference.record(model, quant, (quant.init,), row, compute_packed_states)
        measure("rtn", model)
        del model
        weights: dict[str, Tensor] = {}
        if quant.init != "rtn":
            model = self._load(source)
            with span("calibrate"):
                weights = self._calibrate(model, sequences, report)
            measure(quant.init, model)
        self._save(arms, weights, of_teacher, reference and LayerErrors(reference=reference, by_arm=errors))

    def load_student(self, source: Path, mesh: DeviceMesh | None = None) -> Student:
        """Load the untrained student with the weights that `make` left, sharded over `mesh` if one is given."""
        student_model = load_model(source, self._config.model.dtype)
        if self._config.quant.init != "rtn":
            self._load_weights(student_model)
        return Student(student_model, self._config, mesh=mesh)

    @property
    def arms(self) -> dict[Arm, Fidelity]:
        """Return the fidelity of the untrained students."""
        return read_arms(self._directory)

    @property
    def teacher_text(self) -> TextFields | None:
        """Return the teacher's perplexity of `eval.text`; None where it was not measured."""
        return read_teacher_text(self._directory)

    @property
    def layer_errors(self) -> LayerErrors | None:
        """Return how far the untrained students' layers are from the original's; None where it was not measured."""
        reference = OutputReference.load(self._directory / _OUTPUTS)
        return reference and LayerErrors(reference=reference, by_arm=read_layer_errors(self._directory))

    def _load(self, source: Path) -> PreTrainedModel:
        with span("load model"):
            return load_model(source, self._config.model.dtype)

    def _calibrate(self, model: PreTrainedModel, sequences: Sequence[IntArray], report: Report) -> dict[str, Tensor]:
        """Calibrate `model` in place; return copies, on the CPU, of the tensors that have changed, by name."""
        config = self._config
        changed = calibrate(
            model,
            config.quant,
            make_grid(config.quant, torch_dtype(config.model.dtype)),
            sequences,
            method=config.quant.init,
            max_batch_tokens=config.learner.microbatch_tokens,
            on_layer=lambda done, total: report(StatusEvent(text=f"calibrating, layer {done} of {total}")),
            on_remark=lambda text: report(NoticeEvent(text=text)),
        )
        return {name: tensor.cpu().clone() for name, tensor in model.state_dict().items() if name in changed}

    def _load_weights(self, model: PreTrainedModel) -> None:
        try:
            weights = load_file(self._directory / "weights.safetensors")
        except (OSError, SafetensorError) as error:
            raise RunError(f"{self._directory} cannot be read ({error}); remove the run's directory") from error
        own = model.state_dict()
        for name, tensor in weights.items():
            own[name].copy_(tensor)

    def _save(
        self,
        arms: Mapping[Arm, Fidelity],
        weights: dict[str, Tensor],
        of_teacher: TextFields | None,
        layers: LayerErrors | None,
    ) -> None:
        try:
            with replace_directory(self._directory) as partial:
                write_arms(partial, arms, of_teacher)
                if layers:
                    layers.reference.save(partial / _OUTPUTS)
                    write_layer_errors(partial, layers.by_arm)
                if weights:
                    save_file(weights, partial / "weights.safetensors")
                seal(partial)
        except (OSError, SafetensorError) as error:
            raise StorageError(f"{self._directory} could not be written: {error}; make room and run again") from error
