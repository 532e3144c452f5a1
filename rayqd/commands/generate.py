"""`rayqd generate`: a model's answers to the prompts of a data set, as a data set.

prompts of data.source that lack an answer ─► BatchGenerator: engines over the cluster ─► FILE.jsonl, row by row
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from rich.console import Console

from rayqd.actors.batch_generation import BatchGenerator, CompletionSource, generation_request
from rayqd.actors.connection import connect
from rayqd.config import Config
from rayqd.config.data_source import existing_file_of_source
from rayqd.config.resolved import setting_value, with_absolute_paths
from rayqd.config.sections.markers import ChangesCompletions
from rayqd.config.settings import settings_with
from rayqd.console.generation_progress import GenerationProgress
from rayqd.console.progress import Progress, duration
from rayqd.console.say import say
from rayqd.data.chat_settings import chat_settings
from rayqd.data.completion_file import CompletionFile, Summary
from rayqd.data.detokenize import Detokenizer
from rayqd.data.prompts import Prompt, Prompts
from rayqd.data.render import check_variables
from rayqd.data.stops import end_token_ids
from rayqd.driver.dtype import check_machine
from rayqd.driver.frozen import with_frozen_settings
from rayqd.errors import ConfigError, DataError, ModelError
from rayqd.export.destination import check_export
from rayqd.export.load import is_export, read_kind
from rayqd.model.load import context_length, load_tokenizer
from rayqd.model.source import local_directory
from rayqd.rollout.engine import SamplingRequest
from rayqd.rollout.sampling import with_model_sampling
from rayqd.rollout.worker import MakeEngine
from rayqd.teacher.cache import weights_digest
from rayqd.types import IntArray


@dataclass(frozen=True, slots=True, kw_only=True)
class ResolvedModel:
    """The model that answers."""

    label: str  # in the name of the file
    name: str  # a directory or a hub id
    revision: str | None = None


def generate(
    config: Config,
    *,
    model: str = "teacher",
    out: Path | None = None,
    num_rows: int | None = None,
    command: str = "",
    console: Console | None = None,
    make_engine: MakeEngine | None = None,
) -> list[Summary]:
    """Let `model` answer the first `num_rows` prompts of each source; return what each file holds, one a source.

    What is in a file already stays. Of several sources each has a file of its own, and `out` is left out. `model` is
    teacher, student, a run's directory, or any model; `command` is for the file beside `out`; `make_engine` is called
    in every worker, without it the engine is vLLM. Raises a RayqdError that says in one line what is wrong.
    """
    console = console or Console()
    config = with_frozen_settings(with_absolute_paths(config))
    check_machine(config, runs_vllm=make_engine is None)
    resolved = resolve_model(model, config)
    trusts_code = config.model.trust_remote_code
    directory = local_directory(resolved.name, resolved.revision, trusts_code=trusts_code)
    if is_export(directory) and (kind := read_kind(directory)) != "compressed-tensors":
        raise ModelError(f"{directory} is {kind}, and answers are written by compressed-tensors or 16-bit models alone")
    check_export(directory)
    outs = name_files(config, resolved, out)
    config = with_model_sampling(config, directory)
    tokenizer = load_tokenizer(directory)
    chat = chat_settings(config.data)
    check_variables(tokenizer, chat)
    ends = end_token_ids(tokenizer, directory, chat)
    with ExitStack() as stack:
        jobs: list[AnswerJob] = []
        for source, path in zip(config.data.each_source, outs, strict=True):
            own = config.model_copy(update={"data": config.data.of_source(source)})
            prompts = Prompts(tokenizer, own, context_length(directory))
            settings = _settings(resolved, directory, own)
            file = stack.enter_context(CompletionFile(path, settings=settings, command=command))
            file.read(prompts)
            jobs.append(AnswerJob(own, tokenizer, ends, prompts, file, num_rows))
        with Progress(console, num_steps=0) as progress:
            for job in jobs:
                if job.is_done:
                    progress.say(f"{job.file.path} is finished already")
            if left := [job for job in jobs if not job.is_done]:
                _run(left, resolved, config, progress, make_engine)
        for job in jobs:
            job.file.finish(job.prompts.order)
            _print_summary(console, job)
    return [job.file.summary for job in jobs]


def resolve_model(model: str, config: Config) -> ResolvedModel:
    """Return the model that `--model` means. Raises ModelError for a run that has no export."""
    if model == "teacher":
        teacher = config.only_teacher
        return ResolvedModel(label="teacher", name=teacher.name, revision=teacher.revision)
    path = config.run_dir if model == "student" else Path(model).expanduser()
    if (path / "export").is_dir():
        label = "student" if model == "student" else path.absolute().name
        return ResolvedModel(label=label, name=str(path.absolute() / "export"))
    if model == "student" or (path / "config.toml").is_file():
        hint = f"rayqd export {path}" if path.is_dir() else "name the run with --name, or its directory with --model"
        raise ModelError(f"{path} has no export that could answer: {hint}")
    return ResolvedModel(label=Path(model).name, name=str(path.absolute()) if path.exists() else model)


class AnswerJob:
    """The prompts that `file` lacks, and how their completions become its rows."""

    def __init__(
        self,
        config: Config,
        tokenizer: Any,
        end_ids: tuple[int, ...],
        prompts: Prompts,
        file: CompletionFile,
        num_rows: int | None,
    ) -> None:
        """Choose the prompts; raises DataError if the data has none at all."""
        self.config = config
        self._end_ids = end_ids
        self._detokenizer = Detokenizer(tokenizer, end_ids, chat_settings(config.data), config.rollout.stop)
        self.file = file
        self.prompts = prompts
        self._waiting: dict[int, Prompt] = {}
        self.num_prompts = min(num_rows or len(prompts), len(prompts))
        self.num_before = len(file.done)
        left = prompts.remaining(set(file.done), num_rows)
        first = next(left, None)
        if first is None and not file.done:
            raise DataError(_no_prompts(prompts, config))
        self.is_done = first is None
        self._left = chain([first], left) if first else left

    def keep(self, row: int, completion: IntArray) -> None:
        """Put the completion of row `row` into the file."""
        answer_row = self._detokenizer.to_row(self._waiting.pop(row), completion)
        if answer_row is None:
            self.file.leave_out(row)
        else:
            self.file.append(answer_row)

    def requests(self) -> Iterator[tuple[int, SamplingRequest]]:
        """Yield what the file lacks, each with its row."""
        for prompt in self._left:
            self._waiting[prompt.row] = prompt
            yield prompt.row, generation_request(self.config, prompt.row, prompt.token_ids, self._end_ids)


def run_together(jobs: Sequence[AnswerJob], generator: CompletionSource, writing: GenerationProgress) -> None:
    """Generate the answers of one source after the other, with no engine idle in between; each row is in its file as
    soon as its completion is there."""
    waiting: dict[int, tuple[AnswerJob, int]] = {}

    def requests() -> Iterator[tuple[int, SamplingRequest]]:
        num_before = 0  # rows of the sources before
        for job in jobs:
            for row, request in job.requests():
                waiting[num_before + row] = job, row
                yield num_before + row, request
            num_before += len(job.prompts)

    def keep(key: int, completion: IntArray) -> None:
        job, row = waiting.pop(key)
        job.keep(row, completion)
        writing.written(len(completion))

    generator.generate(requests(), sum(job.num_prompts - job.num_before for job in jobs), keep)


def _run(
    jobs: Sequence[AnswerJob],
    resolved: ResolvedModel,
    config: Config,
    progress: Progress,
    make_engine: MakeEngine | None,
) -> None:
    for job in jobs:
        resumed = f", {job.num_before:,} of them there already" if job.num_before else ""
        progress.say(f"{resolved.label} answers {job.num_prompts:,} prompts of {job.config.data.source}{resumed}")
    num_prompts, num_before = sum(job.num_prompts for job in jobs), sum(job.num_before for job in jobs)
    progress.status("starting Ray")
    with connect(config, progress.say) as cluster:
        name = jobs[0].file.path.stem  # what logs and Ray's dashboard call the workers
        renamed = config.model_copy(update={"name": name})
        options = {"model": resolved.name, "revision": resolved.revision, "make_engine": make_engine}
        with BatchGenerator(renamed, cluster, **options) as generator:
            progress.status(f"starting {config.rollout.num_workers} engine(s)")
            progress.say(f"engines ready after {generator.wait_until_ready():.0f} s")
            writing = GenerationProgress(progress, num_prompts, num_before)
            run_together(jobs, generator, writing)
    rate = writing.num_tokens / writing.seconds
    progress.say(f"wrote {writing.num_written:,} answers in {duration(writing.seconds)}, {rate:,.0f} tok/s")


def _settings(resolved: ResolvedModel, directory: Path, config: Config) -> dict[str, Any]:
    file = existing_file_of_source(config.data.source)
    settings = {"model": Path(resolved.name).name, "weights": weights_digest(directory)[:16]}
    # Where somebody keeps a file does not matter: each row's prompt is compared with the data when the file is read.
    settings |= {"data.source": file.name if file else config.data.source}
    return settings | {key: setting_value(config, key) for key in settings_with(ChangesCompletions)}


def _print_summary(console: Console, job: AnswerJob) -> None:
    config, file, prompts = job.config, job.file, job.prompts
    summary = file.summary
    lines = [
        f"{file.path}: {summary.num_rows:,} answers, {summary.num_tokens:,} tokens, {summary.num_cut:,} cut at "
        f"rollout.max_new_tokens={config.rollout.max_new_tokens} or data.max_length={config.data.max_length}",
        f"read again as text, {summary.num_changed:,} give other tokens than were written",
    ]
    left_out = {
        "prompts too long": prompts.num_too_long,
        "broken rows": prompts.num_skipped,
        "rows by data.filter": prompts.num_filtered,
        "empty answers": summary.num_left_out,
    }
    if any(left_out.values()):
        lines.append(f"left out: {', '.join(f'{number:,} {what}' for what, number in left_out.items() if number)}")
    lines.append(f"train on it  rayqd distill --data.source {file.path}")
    for line in lines:
        say(console, line)


def _no_prompts(prompts: Prompts, config: Config) -> str:
    data = config.data
    return (
        f"{prompts.source} leaves no prompts: of its {len(prompts)} rows {prompts.num_skipped} are broken, "
        f"{prompts.num_too_long} leave no room (data.max_length={data.max_length}, data.min_room={data.min_room})"
        f"{f', {prompts.num_filtered} are left out by data.filter' if prompts.num_filtered else ''}; "
        "raise data.max_length or give other data"
    )


def name_files(config: Config, resolved: ResolvedModel, out: Path | None) -> list[Path]:
    """Return a file of answers for each source. Raises ConfigError for one that cannot be what --out says."""
    sources = config.data.sources
    if sources and out is not None:
        raise ConfigError(
            f"--out {out}: data.sources names {len(sources)}, each with a file of its own: leave --out out"
        )
    if sources:
        return [Path(f"{name}-{resolved.label}.jsonl") for name in config.data.source_names]
    out = (out or Path(f"{_stem(config.data.source)}-{resolved.label}.jsonl")).expanduser()
    if out.suffix != ".jsonl":
        raise ConfigError(f"--out {out}: must end with .jsonl, by which data.source tells a file")
    return [out]


def _stem(source: str) -> str:
    return Path(source).name.removesuffix(".jsonl").removesuffix(".json")
