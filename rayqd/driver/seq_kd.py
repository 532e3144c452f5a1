"""Sequence-level distillation: the teacher writes what the run's off-policy share trains on (Kim & Rush 2016).

    plan ─► the examples that some step trains on off-policy ─► BatchGenerator, with the teacher ─► teacher.jsonl in the
                                                                                       run's directory ─► examples

One completion for each training prompt, drawn once, as exact token ids: they never become text. Examples that only the
student answers keep the data's completion, which nobody looks at.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, NotRequired, TypeAlias, TypedDict

import numpy as np

from rayqd.actors.batch_generation import BatchGenerator, CompletionSource, generation_request
from rayqd.actors.connection import Cluster
from rayqd.config import Config
from rayqd.console.generation_progress import GenerationProgress
from rayqd.console.progress import Progress
from rayqd.data import ExampleSet, make_plan
from rayqd.data.chat_settings import chat_settings
from rayqd.data.example_sequence import ExampleSequence
from rayqd.data.jsonl import JsonlFile
from rayqd.data.mixture import join
from rayqd.data.plan import off_policy_examples
from rayqd.data.stops import end_token_ids
from rayqd.errors import RunError
from rayqd.model.source import teacher_directory
from rayqd.rollout.engine import SamplingRequest
from rayqd.rollout.sampling import with_model_sampling
from rayqd.rollout.worker import MakeEngine
from rayqd.runs.paths import COMPLETIONS
from rayqd.types import Example, IntArray

Place: TypeAlias = tuple[int, int]
"""A source by its position, and a row of it."""


class TeacherRow(TypedDict):
    """A completion of the teacher in the run's directory."""

    row: int  # position of the prompt in its source
    source: NotRequired[int]  # which of the data's sources; the first where it is missing
    prompt_crc32: int
    completion_ids: list[int]


def generate_teacher_completions(
    training: ExampleSet,
    tokenizer: Any,
    config: Config,
    cluster: Cluster,
    progress: Progress,
    make_engine: MakeEngine | None = None,
) -> ExampleSet:
    """Return `training` with the teacher's completions wherever the run trains on it off-policy."""
    config = with_model_sampling(config, teacher_directory(config))
    off_policy = off_policy_examples(make_plan(config, training.sizes), config.learner.steps)
    if not off_policy:
        share = f"with distill.lmbda={config.distill.lmbda:g} the student writes every completion itself"
        progress.say(f"distill.seq_kd has no effect: {share}")
        return training
    places = _list_places(training)
    examples = {places[index]: training.examples[index] for index in off_policy}
    file: JsonlFile[TeacherRow] = JsonlFile(config.run_dir / COMPLETIONS)
    with file as lines:
        completions = read_completions(lines, examples)
        missing = {place: example for place, example in examples.items() if place not in completions}
        if missing:
            ends = end_token_ids(tokenizer, teacher_directory(config), chat_settings(config.data))
            with _start_teacher(config, cluster, make_engine) as generator:
                progress.status("starting the teacher's engine")
                progress.say(f"the teacher's engine ready after {generator.wait_until_ready():.0f} s")
                writing = GenerationProgress(progress, len(examples), len(completions))
                completions |= generate_completions(missing, ends, config, generator, lines, writing)
            progress.say(
                f"the teacher wrote {writing.num_written:,} completions, {writing.num_tokens:,} tokens, "
                f"at {writing.num_tokens / writing.seconds:,.0f} tok/s"
            )
    return replace_completions(training, completions)


def _list_places(training: ExampleSet) -> list[Place]:
    """Return where each of the examples stands."""
    return [(source, example.row) for source, part in enumerate(training.parts) for example in part.examples]


def read_completions(lines: JsonlFile[TeacherRow], examples: Mapping[Place, Example]) -> dict[Place, IntArray]:
    """Return the completions written earlier, by their prompts' places; RunError where those prompts have changed."""
    completions: dict[Place, IntArray] = {}
    for line in lines.rows():
        place = line.get("source", 0), line["row"]
        example = examples.get(place)
        if example is None or line["prompt_crc32"] != _crc32(example.prompt_ids):
            raise RunError(
                f"{lines.path} answers other prompts than the data has now (row {line['row']}): "
                "give this run another name, or remove the file"
            )
        completions[place] = np.asarray(line["completion_ids"], dtype=np.int32)
    return completions


def generate_completions(
    examples: Mapping[Place, Example],
    end_ids: tuple[int, ...],
    config: Config,
    generator: CompletionSource,
    lines: JsonlFile[TeacherRow],
    writing: GenerationProgress,
) -> dict[Place, IntArray]:
    """Return the completion of each example, by its place; each is in `lines` as soon as it is there."""
    completions: dict[Place, IntArray] = {}
    places = list(examples)

    def keep(number: int, completion: IntArray) -> None:
        source, row = place = places[number]
        ids = completion.tolist()
        crc32 = _crc32(examples[place].prompt_ids)
        lines.append({"row": row, "source": source, "prompt_crc32": crc32, "completion_ids": ids})
        completions[place] = completion
        writing.written(len(ids))

    def requests() -> Iterator[tuple[int, SamplingRequest]]:
        for number, (source, row) in enumerate(places):
            prompt_ids = examples[source, row].prompt_ids
            yield number, generation_request(config, row, prompt_ids, end_ids, source)

    generator.generate(requests(), len(places), keep)
    return completions


def replace_completions(training: ExampleSet, completions: Mapping[Place, IntArray]) -> ExampleSet:
    """Return the same examples, with the completions that are there for their places."""
    parts = [
        replace(part, examples=ReplacedCompletions(part.examples, _of_source(completions, source)))
        for source, part in enumerate(training.parts)
    ]
    return replace(join(parts), remarks=training.remarks)


class ReplacedCompletions(ExampleSequence):
    """Examples of one source, some of them with other completions; nothing is copied before it is asked for."""

    def __init__(self, examples: Sequence[Example], completions: Mapping[int, IntArray]) -> None:
        """Take the other completions by row of the source."""
        self._examples = examples
        self._completions = completions

    def __len__(self) -> int:
        return len(self._examples)

    def example_at(self, position: int) -> Example:
        """Return one, with the other completion if its row has one."""
        example = self._examples[position]
        completion = self._completions.get(example.row)
        return example if completion is None else replace(example, completion_ids=completion, trained=None)


def _of_source(completions: Mapping[Place, IntArray], source: int) -> dict[int, IntArray]:
    return {row: completion for (of, row), completion in completions.items() if of == source}


def _start_teacher(config: Config, cluster: Cluster, make_engine: MakeEngine | None) -> BatchGenerator:
    """No other role runs yet, so the share of a GPU that the student's engine is to take is not the teacher's limit."""
    alone = config.model_copy(update={"rollout": config.rollout.model_copy(update={"gpu_memory_utilization": None})})
    teacher = config.only_teacher
    return BatchGenerator(alone, cluster, model=teacher.name, revision=teacher.revision, make_engine=make_engine)


def _crc32(prompt_ids: IntArray) -> int:
    return zlib.crc32(prompt_ids.astype("<i4").tobytes())
