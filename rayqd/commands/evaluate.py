"""A checkpoint against its teacher on the held-out rows and on benchmarks, in one process and without Ray."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from rayqd.commands.evaluated_models import EvaluatedModels, directory_of, engine_directory
from rayqd.commands.own_text import choose_writing, find_basis
from rayqd.config import Config
from rayqd.config.resolved import setting_value
from rayqd.config.sections.markers import ChangesBenchmarks
from rayqd.config.settings import settings_with
from rayqd.console.benchmark_table import print_benchmarks
from rayqd.console.continuations import continuation_lines
from rayqd.console.say import say
from rayqd.data import ExampleSet
from rayqd.data.chat_settings import chat_settings
from rayqd.driver.dtype import check_machine
from rayqd.driver.frozen import with_frozen_settings
from rayqd.driver.preflight import Checked, check, load_data
from rayqd.errors import ConfigError
from rayqd.evals.benchmarks import TEACHER, BenchmarkRunner, ModelScores
from rayqd.evals.continuations import measure_continuations
from rayqd.evals.fidelity import score
from rayqd.evals.harness import Benchmark, open_benchmarks
from rayqd.evals.heldout import Heldout
from rayqd.evals.several_teachers import score_by_teacher
from rayqd.events import Fidelity
from rayqd.export.foreign_layouts import load_any
from rayqd.export.model_card import CARD_NAME
from rayqd.export.write import update_card
from rayqd.learner.checkpoint import load_checkpoint
from rayqd.learner.initialization import Initialization, untrained_arm
from rayqd.losses.output_head import Head
from rayqd.model.load import device, load_model, load_tokenizer, output_head
from rayqd.model.source import student_directory, teacher_directory
from rayqd.model.student import Student
from rayqd.report.write import rewrite_report
from rayqd.rollout.support import installed_vllm
from rayqd.runs.benchmarks import BenchmarkRow, benchmarks_file, items_file, read_benchmarks
from rayqd.runs.config_file import load_run_config
from rayqd.runs.continuations import continuations_file, write_continuations
from rayqd.runs.ending import ending_of
from rayqd.runs.paths import CONFIG, EVALS, EXPORT, RESULT
from rayqd.runs.result_file import read_result
from rayqd.runs.verdict import between, estimate_kl
from rayqd.teacher.cache import weights_digest
from rayqd.teacher.forward import Teacher
from rayqd.types import Rollout

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """A model beside its teacher, on the same held-out rows and benchmarks."""

    path: str  # of the model
    model: Fidelity
    teacher: Fidelity
    benchmarks: list[BenchmarkRow]  # none without eval.tasks

    def to_json(self) -> dict[str, object]:
        """Return what eval/NAME.json holds: all but the benchmarks, which have a file of their own."""
        return {"path": self.path, "model": self.model.to_json(), "teacher": self.teacher.to_json()}


def evaluate(path: Path, config: Config, console: Console | None = None, *, keeps: bool = True) -> Evaluation:
    """Measure the model at `path`, a run, one of its checkpoints, or any model directory, beside its teacher.

    KL and perplexity on the held-out rows, and the benchmarks of `eval.tasks`. Prints them, and if it `keeps` them, in
    `eval/` of the run's directory when `path` lies in one. Raises a RayqdError before any model is loaded where a
    setting, a file or a task is wrong.
    """
    console = console or Console()
    directory_of(path, trusts_code=config.model.trust_remote_code)
    config = with_frozen_settings(config)
    _check_teachers(config)
    check_machine(config, runs_vllm=bool(config.eval.tasks) and config.eval.backend == "vllm")
    checked = check(config, trains=False)
    benchmarks = _benchmarks(checked, config, console)
    run_dir = _run_directory(path) if keeps else None
    return _Evaluation(path, config, checked, benchmarks, console, run_dir).run()


class _Evaluation:
    def __init__(
        self,
        path: Path,
        config: Config,
        checked: Checked,
        benchmarks: list[Benchmark],
        console: Console,
        run_dir: Path | None,
    ) -> None:
        self._path, self._config, self._checked = path, config, checked
        self._run_dir = run_dir  # that keeps what is measured
        self._console = console
        tokenizer = _tokenizer(checked, config) if benchmarks else None
        batch_size = config.eval.task_batch_size
        self._runner = BenchmarkRunner(benchmarks, tokenizer, self._say, batch_size) if benchmarks else None
        self._models = EvaluatedModels(config, checked.directory, tokenizer, self._say)
        self._arms: dict[str, ModelScores] = {}

    def run(self) -> Evaluation:
        path, config = self._path, self._config
        _, heldout = load_data(self._checked, config)
        for remark in heldout.remarks:
            self._say(remark)
        measured, teacher_heads, teacher = self._teacher(heldout)
        model = load_student(path, config)
        fidelity = measured.evaluate_model(model, output_head(model), teacher_heads)
        self._say(
            f"{path}: KL to teacher {fidelity.kl_to_teacher:.4f}{between(estimate_kl(fidelity))}, "
            f"perplexity {fidelity.perplexity:.3f} (teacher {teacher.perplexity:.3f}) over {fidelity.num_tokens:,} "
            "held-out tokens"
        )
        if fidelity.text_perplexity is not None:
            beside = "" if teacher.text_perplexity is None else f" (teacher {teacher.text_perplexity:.4f})"
            self._say(
                f"{config.eval.text}: perplexity {fidelity.text_perplexity:.4f}{beside} over "
                f"{fidelity.num_text_tokens:,} tokens"
            )
        if config.eval.continuations:
            self._continue(measured.rollouts[: config.eval.continuations], model)
        benchmarks = self._run_benchmarks(self._runner, model) if self._runner else []
        evaluation = Evaluation(path=str(path), model=fidelity, teacher=teacher, benchmarks=benchmarks)
        self._keep(evaluation)
        return evaluation

    def _continue(self, rows: Sequence[Rollout], model: PreTrainedModel) -> None:
        """Measure the student where it goes on by itself; kept beside the run, and put into its page."""
        config, checked = self._config, self._checked
        tokenizer = _tokenizer(checked, config)
        if len(rows) < config.eval.continuations:
            asked = f"eval.continuations = {config.eval.continuations}"
            self._say(f"{asked}: only {len(rows)} rows are held out (eval.num_rows)")
        writing = choose_writing(config, tokenizer, checked.directory)
        others = {untrained_arm("rtn", config.quant).name: self._load_rounded} if config.eval.rtn else {}
        found = measure_continuations(
            rows,
            model,
            lambda: load_model(teacher_directory(config), config.model.dtype),
            others,
            tokenizer.decode,
            writing,
            find_basis(config, writing, rows, directory_of(self._path, trusts_code=config.model.trust_remote_code)),
        )
        for line in continuation_lines(found):
            self._say(line)
        if run_dir := self._run_dir:
            write_continuations(continuations_file(run_dir, self._path.resolve().name), found)
            rewrite_report(run_dir)

    def _run_benchmarks(self, runner: BenchmarkRunner, model: PreTrainedModel) -> list[BenchmarkRow]:
        student = runner.score("student", lambda: self._models.open(model, engine_directory(self._path, self._config)))
        if self._config.eval.rtn:
            self._rounded(runner)
        self._arms["student"] = student  # the last row of the table
        rows = runner.compare(self._arms)
        print_benchmarks(self._console, rows)
        return rows

    def _teacher(self, heldout: ExampleSet) -> tuple[Heldout, Sequence[Head], Fidelity]:
        """Score the held-out rows; returns them, its head, and its own fidelity. Its benchmarks are in `_arms` then."""
        config = self._config
        if len(config.teachers) > 1:
            rows, heads = score_by_teacher(config, heldout.examples)
            measured = Heldout(rows, heads, config.learner.microbatch_tokens, heldout.text)
            return measured, heads, measured.evaluate_teacher(heads)
        directory = teacher_directory(config)
        teacher = load_model(directory, config.model.dtype)
        rows = score(heldout.examples, Teacher(teacher, config.teacher.max_batch_tokens))
        if self._runner:
            self._arms[TEACHER] = self._runner.score(
                TEACHER, lambda: self._models.open(teacher, directory), self._identity(directory)
            )
        head = output_head(teacher)
        measured = Heldout(rows, head, config.learner.microbatch_tokens, heldout.text)
        return measured, [head], measured.with_text(measured.evaluate_teacher(head), teacher, head)

    def _rounded(self, runner: BenchmarkRunner) -> None:
        config, directory = self._config, self._checked.directory
        name = untrained_arm("rtn", config.quant).name
        identity = [*self._identity(directory), config.quant.model_dump_json()]
        self._arms[name] = runner.score(name, lambda: self._models.open(self._load_rounded(), None), identity)

    def _load_rounded(self) -> PreTrainedModel:
        config = self._config
        plain = config.model_copy(update={"adapter": config.adapter.model_copy(update={"kind": "none"})})
        model = load_model(self._checked.directory, config.model.dtype)
        return Student(model, plain, trainable=False).to_plain_model()

    def _identity(self, directory: Path) -> list[str]:
        """Return what a model's answers depend on, besides the question."""
        backend = [] if self._config.eval.backend == "transformers" else ["vllm", *installed_vllm().values()]
        return [weights_digest(directory), self._config.model.dtype, device().type, *backend]

    def _keep(self, evaluation: Evaluation) -> None:
        """Write benchmarks to a file of their own, which measuring the KL again leaves alone."""
        run_dir = self._run_dir
        if run_dir is None:
            return
        name = self._path.resolve().name
        _write(run_dir / EVALS / f"{name}.json", evaluation.to_json())
        if self._runner:
            _write(benchmarks_file(run_dir, name), self._benchmarks_file(evaluation))
            items = [json.dumps(each) + "\n" for each in self._runner.list_items(self._arms)]
            items_file(run_dir, name).write_text("".join(items), encoding="utf-8")
            if self._path.resolve() in (run_dir, run_dir / EXPORT):
                _publish_benchmarks(run_dir)

    def _benchmarks_file(self, evaluation: Evaluation) -> dict[str, object]:
        asked = {
            key.removeprefix("eval."): setting_value(self._config, key) for key in settings_with(ChangesBenchmarks)
        }
        return {"path": evaluation.path, "lm_eval": version("lm_eval"), **asked, "rows": evaluation.benchmarks}

    def _say(self, line: str) -> None:
        say(self._console, line)


def _check_teachers(config: Config) -> None:
    """Raise ConfigError where something is asked of the teacher, and there are several: the KL is each row's own."""
    asked = [name for name in ("tasks", "continuations") if getattr(config.eval, name)]
    if asked and len(config.teachers) > 1:
        raise ConfigError(
            f"eval.{asked[0]} compares with one teacher, and teacher.route names several: leave it out "
            f"(--eval.{asked[0]} {'none' if asked[0] == 'tasks' else '0'}), or compare with one of them "
            "(--teacher.route {} --teacher.column none --teacher.name org/model)"
        )


def _benchmarks(checked: Checked, config: Config, console: Console) -> list[Benchmark]:
    if not config.eval.tasks:
        return []
    tokenizer = _tokenizer(checked, config)
    benchmarks = open_benchmarks(
        config.eval, tokenizer, chat_settings(config.data), lambda why: say(console, f"skipped: {why}")
    )
    answering = [each.name for each in benchmarks if each.generates]
    if answering and tokenizer.chat_template and not config.eval.apply_chat_template:
        say(
            console,
            f"{', '.join(answering)}: asked without the model's chat template; an instruction-tuned model answers "
            "better with --eval.apply_chat_template",
        )
    return benchmarks


def _tokenizer(checked: Checked, config: Config) -> Any:
    """Return the model's tokenizer, with the run's chat template if it has one of its own."""
    tokenizer = load_tokenizer(checked.directory)
    if template := chat_settings(config.data).template:
        tokenizer.chat_template = template
    return tokenizer


def load_student(path: Path, config: Config) -> PreTrainedModel:
    """Load what is at `path`; of a checkpoint what would be exported, so that its adapter is merged."""
    if (path / "student.safetensors").is_file():
        inside = config.adapter.model_copy(update={"placement": "inside"})
        student = Initialization(config.model_copy(update={"adapter": inside})).load_student(student_directory(config))
        student.load_state_dict(load_checkpoint(path)["student"])
        return student.to_plain_model()
    directory = directory_of(path, trusts_code=config.model.trust_remote_code)
    return load_any(directory, config.model.dtype)


def _publish_benchmarks(run_dir: Path) -> None:
    """Put the benchmarks of the export into the run's page and the export's model card."""
    rewrite_report(run_dir)
    result, export = read_result(run_dir / RESULT), run_dir / EXPORT
    if result and result.command != "eval" and (export / CARD_NAME).exists():
        config, benchmarks = load_run_config(run_dir / CONFIG), read_benchmarks(run_dir)
        update_card(
            export, config, result.rows, benchmarks=benchmarks, command=result.command, ending=ending_of(config, result)
        )


def _write(file: Path, content: Mapping[str, object]) -> None:
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps(content, indent=2) + "\n")


def _run_directory(path: Path) -> Path | None:
    candidates = (path.resolve(), *path.resolve().parents[:2])
    return next((directory for directory in candidates if (directory / CONFIG).is_file()), None)
