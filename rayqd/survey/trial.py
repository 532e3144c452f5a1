"""One architecture from its configuration to its export, on a tiny random model, held against transformers alone.

Everything that is compared is computed twice: by what a run uses (packed rows, fake quantization, the loss's head), and
by transformers' own eager forward pass in float32, a row at a time (`plain.py`).

Shapes: L tokens, V ids.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from rayqd.config import Config
from rayqd.config.sections import METHODS
from rayqd.console.quiet import quiet_libraries
from rayqd.driver.export_check import tiny_settings
from rayqd.driver.preflight import check
from rayqd.errors import ModelError, RayqdError
from rayqd.evals.fidelity import student_fidelity
from rayqd.evals.heldout import Heldout
from rayqd.export.load import load_export
from rayqd.export.logits import check_logits, compute_student_logits, short_row
from rayqd.export.verify import compare
from rayqd.export.write import export
from rayqd.learner.learner import Learner
from rayqd.model.calibration import calibrate
from rayqd.model.calibration.check import check_layer_by_layer
from rayqd.model.forward.of_model import mode_of
from rayqd.model.forward.probe import find_mode
from rayqd.model.fused_experts import find_fused_experts
from rayqd.model.load import load_meta_model, load_model, output_head
from rayqd.model.student import Student
from rayqd.model.weight_bits import count_weight_bits
from rayqd.quant import make_grid, quantizable_layers
from rayqd.quant.routers import find_expert_containers
from rayqd.survey.architectures import write_checkpoint
from rayqd.survey.plain import plain_kl, plain_logits
from rayqd.survey.row import Row, Verdict
from rayqd.survey.rows import largest_difference, logits_together, make_rollouts, predicting, token_ids
from rayqd.teacher.forward import Teacher
from rayqd.types import ScoredRollout

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

TOLERANCE = 1e-3  # of the root mean square of the logits: float32 roundings of a few layers are below 1e-4
KL_TOLERANCE = 1e-4  # nats a token
_MOST_TOKENS = 1000  # in a call: all rows
_SEED = 3


class Trial:
    """What is tried of one architecture. `run` fills the row as far as it comes."""

    def __init__(self, config: PreTrainedConfig, row: Row, scratch: Path) -> None:
        self._model_config, self._row, self._scratch = config, row, scratch
        self._source = scratch / "source"

    def run(self) -> None:
        """Go through all of it; a refusal is a RayqdError, and a number that differs makes the row wrong."""
        torch.manual_seed(_SEED)
        self._write_source()
        config = self._settings()
        checked = check(config)
        self._row.batching = checked.forward["student"]
        self._describe(config)
        scored, own = self._compare_rows()
        try:
            self._train(config, scored, own)
            self._calibrate(config, own)
        except RayqdError as error:
            raise _DifferenceError(f"refused late: {error}") from error

    def _write_source(self) -> None:
        """Write the checkpoint; where no tiny copy can be made, raise what a run says of that."""
        try:
            write_checkpoint(self._model_config, self._source)
        except Exception:
            find_mode(self._model_config)
            raise

    def _settings(self) -> Config:
        """Return the settings of a run with groups that fit the tiny model."""
        model = load_meta_model(self._source)
        learner = {"lr": 1e-2, "steps": 1, "warmup_ratio": 0.0}
        runs_dir = self._scratch / "runs"
        config = tiny_settings(model, self._source, runs_dir=runs_dir, adapter={"rank": 4}, learner=learner)
        self._row.group_size = config.quant.group_size
        return config

    def _describe(self, config: Config) -> None:
        model = load_meta_model(self._source)
        quantized = quantizable_layers(model, config.quant)
        counted = {each.kind: each for each in count_weight_bits(model, config)}
        if any(find_expert_containers(model)):
            experts = counted.get("experts")
            self._row.experts = "16-bit" if experts is None or experts.num_dense else "4-bit"
        taken = {f"{name}.weight" for name in quantized} | (
            set(find_fused_experts(model)) if self._row.experts == "4-bit" else set()
        )
        outside = {id(m.weight) for m in (model.get_input_embeddings(), model.get_output_embeddings()) if m is not None}  # pyright: ignore[reportAttributeAccessIssue]
        self._row.dense = sorted(
            {
                _kind(name)
                for name, parameter in model.named_parameters()
                if parameter.dim() > 1 and name not in taken and id(parameter) not in outside
            }
        )

    def _compare_rows(self) -> tuple[list[ScoredRollout], list[Tensor]]:
        """Compare the teacher's logits of rows together with transformers' of each alone, and return rows and those."""
        model = load_model(self._source, "float32")
        mode = mode_of(model)
        self._row.head = mode.head.words
        rollouts = make_rollouts(len(output_head(model)))
        own = plain_logits(self._source, token_ids(rollouts))
        self._note("teacher", *largest_difference(logits_together(model, rollouts), predicting(own, rollouts)))
        payloads = Teacher(model, _MOST_TOKENS).hidden(rollouts)
        return [ScoredRollout(rollout=r, payload=p) for r, p in zip(rollouts, payloads, strict=True)], own

    def _train(self, config: Config, scored: Sequence[ScoredRollout], own: Sequence[Tensor]) -> None:
        """Do one optimizer step, export, and compare the export as transformers alone computes it with the student."""
        rollouts = [each.rollout for each in scored]
        student = Student.load(self._source, config)
        self._row.num_quantized = sum(1 for _ in student.quantized_layers())
        head = output_head(load_model(self._source, "float32"))
        learner = Learner(student, head, config)
        with _record_called(student) as called:
            result = learner.step(0, scored, sum(r.num_loss_tokens for r in rollouts))
        if not math.isfinite(result.loss):
            raise _DifferenceError(f"the loss of a step is {result.loss}")
        self._row.untrained = sorted({_kind(name) for name in called if not _has_gradient(student, name)})
        with torch.no_grad():
            together = logits_together(student.model, rollouts)
        kl = Heldout(scored, head, _MOST_TOKENS).evaluate(student).kl_to_teacher
        directory = self._scratch / "export"
        export(student, self._source, config, directory)
        ids = short_row(rollouts)
        check_logits(directory, compute_student_logits(student, ids), ids, "float32")
        with quiet_libraries():
            read_back = plain_logits(directory, token_ids(rollouts))
        exported = predicting(read_back, rollouts)
        self._note("export", *largest_difference(together, exported))
        loaded = load_export(directory, "float32")
        evaluated = student_fidelity(loaded, output_head(loaded), head, scored, _MOST_TOKENS).kl_to_teacher
        plain = plain_kl(exported, predicting(own, rollouts))
        self._row.kl = {"run": kl, "eval": evaluated, "transformers": plain}
        if not max(abs(kl - plain), abs(evaluated - plain)) <= KL_TOLERANCE:
            raise _DifferenceError(
                f"run and eval report a KL of {kl:.5g} and {evaluated:.5g}, transformers has {plain:.5g}"
            )
        found = compare(loaded, student.quantized_layers(), student.dense_tensors(), student.grid)
        if not found.equal:
            raise _DifferenceError(f"{len(found.differing)} tensors of the export are others: {found.differing[0]}")

    def _calibrate(self, config: Config, own: Sequence[Tensor]) -> None:
        """Try GPTQ, and AWQ's scales, which without rounding and clipping leave what the model computes."""
        for method in ("gptq", "awq"):
            self._row.calibrations[method] = self._calibrated(config, method, own)

    def _calibrated(self, config: Config, method: str, own: Sequence[Tensor]) -> str:
        try:
            check_layer_by_layer(load_meta_model(self._source).config, method)
        except ModelError as error:
            return str(error)
        model = load_model(self._source, "float32")
        rollouts = make_rollouts(len(output_head(model)))
        sequences = [np.concatenate([r.prompt_ids, r.completion_ids]) for r in rollouts]
        grid = make_grid(config.quant, torch.float32)
        changed = calibrate(
            model, config.quant, grid, sequences, method=method, max_batch_tokens=_MOST_TOKENS, clips=method == "gptq"
        )
        if method == "awq":
            with torch.no_grad():
                self._note("awq", *largest_difference(logits_together(model, rollouts), predicting(own, rollouts)))
        elif not changed:
            raise _DifferenceError("GPTQ changes no weight")
        with torch.no_grad():
            student = Student(model, config, trainable=False)
            if not bool(logits_together(student.model, rollouts)[0].isfinite().all()):
                raise _DifferenceError(f"{METHODS[method]} leaves a model that computes inf or nan")
        return "exact"

    def _note(self, name: str, difference: float, what: str) -> None:
        self._row.differences[name] = difference
        if not difference <= TOLERANCE:
            raise _DifferenceError(f"{_WORDS[name]} off by {difference:.2g} of their size ({what})")


_WORDS = {
    "teacher": "logits of rows together are",
    "export": "logits of the export are",
    "awq": "AWQ's scales leave logits",
}


class _DifferenceError(Exception):
    """A number that differs although nothing said so."""


def run_trial(config: Callable[[], PreTrainedConfig], row: Row, scratch: Path) -> Row:
    """Run a trial of the model that `config` makes and return `row`, with the verdict."""
    try:
        with quiet_libraries():
            Trial(config(), row, scratch).run()
        row.verdict = Verdict.EXACT
    except RayqdError as error:
        row.verdict, row.words = Verdict.REFUSED, str(error)
    except _DifferenceError as error:
        row.verdict, row.words = Verdict.WRONG, str(error)
    except Exception as error:  # noqa: BLE001 (what the command is there to find)
        row.verdict, row.words = Verdict.FAILED, _where(error)
    return row


def _where(error: Exception) -> str:
    """Format an exception with the innermost line that raised it."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    place = f"{Path(trace.tb_frame.f_code.co_filename).name}:{trace.tb_lineno}" if trace else ""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]} ({place})"


def _kind(name: str) -> str:
    """Return the last two parts of a matrix's name, without numbers: `mlp.gate`."""
    parts = [part for part in name.removesuffix(".weight").split(".") if not part.isdigit()]
    return ".".join(parts[-2:])


@contextmanager
def _record_called(student: Student) -> Iterator[set[str]]:
    """Yield a set to which the name of each quantized layer is added that the model calls."""
    called: set[str] = set()
    handles = [
        layer.register_forward_hook(lambda *_, name=name: called.add(name)) for name, layer in student.layers.items()
    ]
    try:
        yield called
    finally:
        for handle in handles:
            handle.remove()


def _has_gradient(student: Student, layer: str) -> bool:
    """Return whether any value of a layer's adapter got a gradient: what only chooses among others gets none."""
    parameters = [p for name, p in student.parameters().items() if name.startswith(f"{layer}.lora_B.")]
    return not parameters or any(p.grad is not None and bool(p.grad.any()) for p in parameters)
