"""`rayqd quantize`: a 4-bit checkpoint without training, in one process and without Ray.

check ─► score the held-out rows with the teacher ─► round to nearest, measure ─► calibrate, measure ─► export
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

from rich.console import Console

from rayqd.config import Config
from rayqd.config.resolved import with_absolute_paths
from rayqd.config.sections import METHODS
from rayqd.console.data import first_row_lines
from rayqd.console.progress import Progress, eval_line, headline
from rayqd.console.result_table import print_result
from rayqd.console.say import say
from rayqd.data import ExampleSet
from rayqd.data.calibration import calibration_sequences
from rayqd.data.run_data import examples_by_weight
from rayqd.data.summary import summarize_data
from rayqd.driver.dtype import check_machine, describe_dtype
from rayqd.driver.frozen import with_frozen_settings
from rayqd.driver.preflight import Checked, check, describe_data, load_data
from rayqd.evals.fidelity import score
from rayqd.evals.heldout import Heldout
from rayqd.evals.several_teachers import score_by_teacher
from rayqd.events import TEACHER, Arm, ArmResult, EvalEvent, Fidelity
from rayqd.export.logits import check_logits, compute_packed_states, compute_student_logits, short_row
from rayqd.export.write import dense_bits, export, update_card, weight_bytes
from rayqd.learner.initialization import untrained_arm
from rayqd.model.calibration import calibrate, check_method
from rayqd.model.calibration.check import check_layer_by_layer
from rayqd.model.layer_outputs import OutputReference
from rayqd.model.load import load_meta_model, load_model, output_head, torch_dtype
from rayqd.model.source import teacher_directories, teacher_directory
from rayqd.model.student import Student
from rayqd.model.weight_bits import mean_bits
from rayqd.quant import make_grid
from rayqd.report.write import write_report
from rayqd.runs.data_file import write_data
from rayqd.runs.directory import RunDirectory
from rayqd.runs.ended import record_abnormal_exit
from rayqd.runs.environment import collect_environment
from rayqd.runs.paths import EXPORT
from rayqd.runs.result_file import QuantizeResult
from rayqd.runs.startup import make_startup
from rayqd.runs.time_parts import round_parts
from rayqd.spans import span, start_clock, take_spans
from rayqd.teacher.forward import Teacher
from rayqd.types import IntArray


def quantize(config: Config, console: Console | None = None, *, began: float | None = None) -> QuantizeResult:
    """Quantize `config.model` with `quant.method`; returns what result.json says. A finished run only tells it.

    Of the settings, those of training, rollouts and Ray do not matter. `began` is when the command was given, in
    seconds since the epoch. Raises a RayqdError that says in one line what is wrong.
    """
    console = console or Console()
    began = start_clock(began)
    asked = with_absolute_paths(config)
    config = with_frozen_settings(asked)
    check_method(config.quant.method, config.quant)
    run_dir = RunDirectory(config, command="quantize")
    try:
        if remark := run_dir.set_damaged_result_aside():
            say(console, remark)
        result = run_dir.result
        if not isinstance(result, QuantizeResult):
            run_dir.forget_metrics_after(-1)
            with record_abnormal_exit(run_dir.path):
                result = _Quantizing(config, run_dir, console).run(began, describe_dtype(asked, config))
                run_dir.finish(result)
            write_report(config, result)
        else:
            say(console, f"{run_dir.path} has finished already; this is its result")
        print_result(console, result, run_dir.path, title="what 4 bits cost")
        run_dir.upload(export=True)
    finally:
        run_dir.close()
    return result


class _Quantizing:
    def __init__(self, config: Config, run_dir: RunDirectory, console: Console) -> None:
        self._run_dir = run_dir
        self._progress = Progress(console, num_steps=0)
        # Nothing is trained, so the student is the model's own weights, rounded.
        self._config = config.model_copy(update={"adapter": config.adapter.model_copy(update={"kind": "none"})})
        self._seconds: dict[str, float] = {}

    def run(self, began: float, remark: str) -> QuantizeResult:
        config, quant = self._config, self._config.quant
        with self._progress as progress:
            progress.say(headline(config))
            if remark:
                progress.say(remark)
            progress.status("checking model and configuration")
            check_machine(config, runs_vllm=False)
            checked = check(config, trains=False)
            check_layer_by_layer(load_meta_model(checked.directory).config, quant.method)
            training, heldout_rows = load_data(checked, config, partial(progress.bar, "tokenizing"))
            for remark in checked.remarks:
                progress.say(remark)
            for line in describe_data(training, heldout_rows):
                progress.say(line)
            data = summarize_data(checked.tokenizer, checked.directory, config, training, heldout_rows, trains=False)
            write_data(self._run_dir.path, data)
            for line in first_row_lines(data, progress.console.width):
                progress.say(line)
            heldout, teacher_row = self._teacher(heldout_rows)
            student, reference = self._student(checked, short_row(heldout.rollouts))
            rounded = untrained_arm("rtn", quant)
            arms = {rounded: self._measured("rtn", student, heldout)}
            errors = {rounded: reference.errors(student.model, compute_packed_states)}
            if quant.method != "rtn":
                del student  # before the next one takes its memory
                examples = examples_by_weight(training, config)
                sequences = calibration_sequences(examples, quant.calibration_tokens)
                student = self._calibrated(checked, sequences)
                calibrated = untrained_arm(quant.method, quant)
                arms[calibrated] = self._measured(quant.method, student, heldout)
                errors[calibrated] = reference.errors(student.model, compute_packed_states)
            with self._timed("export", "writing the export"):
                rows = self._exported(student, checked, teacher_row, arms, errors)
            with self._timed("export", "checking the export"):
                row = short_row(heldout.rollouts)
                logits = compute_student_logits(student, row)
                check_logits(self._run_dir.path / EXPORT, logits, row, config.model.dtype)
        ended = time.time()
        rest = max(0.0, ended - began - sum(self._seconds.values()))
        return QuantizeResult(
            name=config.name,
            rows=tuple(rows),
            seconds={k: round(v, 1) for k, v in {"total": ended - began, **self._seconds}.items()},
            finished=round(ended, 1),
            parts=round_parts({**self._seconds, "start, data, loading": rest}),
            method=quant.method,
            export=str(self._run_dir.path / EXPORT),
            environment=replace(collect_environment(), forward=checked.forward),
            startup=make_startup(began, [], take_spans("driver"), ended),
        )

    def _teacher(self, heldout_rows: ExampleSet) -> tuple[Heldout, ArmResult]:
        """Score the held-out rows; returns them and the teacher's own row of the result."""
        config = self._config
        if len(config.teachers) > 1:
            return self._teachers(heldout_rows)
        directory = teacher_directory(config)
        with self._timed("teacher", "the teacher reads the held-out rows"):
            model = load_model(directory, config.model.dtype)
            rows = score(heldout_rows.examples, Teacher(model, config.teacher.max_batch_tokens))
            head = output_head(model)
            heldout = Heldout(rows, head, config.learner.microbatch_tokens, heldout_rows.text)
            fidelity = heldout.with_text(heldout.evaluate_teacher(head), model, head)
        bits, size = dense_bits(directory), weight_bytes(directory)
        return heldout, ArmResult(arm=TEACHER, fidelity=fidelity, bits_per_weight=bits, size_bytes=size)

    def _teachers(self, heldout_rows: ExampleSet) -> tuple[Heldout, ArmResult]:
        """Do the same with several teachers, each on its own rows."""
        config = self._config
        with self._timed("teacher", "the teachers read the held-out rows"):
            rows, heads = score_by_teacher(config, heldout_rows.examples)
            heldout = Heldout(rows, heads, config.learner.microbatch_tokens, heldout_rows.text)
            fidelity = heldout.evaluate_teacher(heads)
        directories = teacher_directories(config)
        bits, size = dense_bits(*directories), weight_bytes(*directories)
        return heldout, ArmResult(arm=TEACHER, fidelity=fidelity, bits_per_weight=bits, size_bytes=size)

    def _student(self, checked: Checked, row: IntArray) -> tuple[Student, OutputReference]:
        """Load the model; return it rounded to nearest, and what leaves the layers of the original on `row`, [T]."""
        quant = self._config.quant
        model = load_model(checked.directory, self._config.model.dtype)
        reference = OutputReference.record(model, quant, (quant.method,), row, compute_packed_states)
        return Student(model, self._config, trainable=False), reference

    def _calibrated(self, checked: Checked, sequences: list[IntArray]) -> Student:
        config, quant = self._config, self._config.quant
        name = METHODS[quant.method]
        num_tokens = sum(len(ids) for ids in sequences)
        with self._timed("calibration", f"calibrating {name}"):
            model = load_model(checked.directory, config.model.dtype)
            calibrate(
                model,
                quant,
                make_grid(quant, torch_dtype(config.model.dtype)),
                sequences,
                method=quant.method,
                max_batch_tokens=config.learner.microbatch_tokens,
                on_layer=lambda done, total: self._progress.bar(f"calibrating {name}", done, total),
                on_remark=self._progress.say,
            )
        self._progress.say(f"{name} calibrated on {num_tokens:,} tokens in {self._seconds['calibration']:.0f} s")
        return Student(model, config, trainable=False)

    def _measured(self, method: str, student: Student, heldout: Heldout) -> Fidelity:
        arm = untrained_arm(method, self._config.quant)
        with self._timed("evaluation", f"measuring {arm.name}"):
            fidelity = heldout.evaluate(student)
        event = EvalEvent(step=0, arm=arm, fidelity=fidelity)
        self._run_dir.append(event, time.time())
        self._progress.say(eval_line(event))
        return fidelity

    def _exported(
        self,
        student: Student,
        checked: Checked,
        teacher_row: ArmResult,
        arms: Mapping[Arm, Fidelity],
        errors: Mapping[Arm, Mapping[str, float]],
    ) -> list[ArmResult]:
        """Write the export; returns the rows of the result."""
        directory = self._run_dir.path / EXPORT
        export(student, checked.directory, self._config, directory, command="quantize")
        size = weight_bytes(directory)
        counted = student.weight_bits
        bits, kinds = mean_bits(counted), {each.kind: each.bits_per_weight for each in counted}
        rows = [
            teacher_row,
            *(
                ArmResult(
                    arm=a,
                    fidelity=f,
                    bits_per_weight=bits,
                    size_bytes=size,
                    bits_by_kind=kinds,
                    layer_errors=errors[a],
                )
                for a, f in arms.items()
            ),
        ]
        update_card(directory, self._config, rows, command="quantize")
        return rows

    @contextmanager
    def _timed(self, part: str, status: str) -> Iterator[None]:
        self._progress.status(status)
        began = time.monotonic()
        with span(status):
            yield
        self._seconds[part] = self._seconds.get(part, 0.0) + time.monotonic() - began
