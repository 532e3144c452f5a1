"""Checks of all that can be found wrong before a model is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rayqd.cluster.placement import Placement
from rayqd.config import Config
from rayqd.config.sections.models import TeacherModel
from rayqd.data import ExampleSet, load_run_data
from rayqd.data.chat_settings import chat_settings
from rayqd.data.render import check_variables
from rayqd.data.select import OnTokenized
from rayqd.data.user_code import check_user_code
from rayqd.driver.dtype import is_elsewhere
from rayqd.driver.export_check import check_export
from rayqd.driver.weights_check import check_weights
from rayqd.errors import ConfigError, ModelError, StorageError
from rayqd.evals.while_training import check_tasks
from rayqd.files import free_bytes
from rayqd.losses.check import check_loss
from rayqd.model.adapters import describe_unadapted
from rayqd.model.calibration.check import check_layer_by_layer
from rayqd.model.forward.probe import find_mode
from rayqd.model.fused_experts import quantizable_experts
from rayqd.model.load import common_vocab_size, context_length, load_meta_model, load_tokenizer
from rayqd.model.model_class import check_config
from rayqd.model.rounded_head import check_head, describe_head
from rayqd.model.sharding import check_can_be_sharded
from rayqd.model.source import student_directory, teacher_directories
from rayqd.model.weight_bits import count_weight_bits, describe_bits, describe_dense_body
from rayqd.quant import quantizable_layers
from rayqd.rollout.gpu_share import check_without_engine, divide_gpu, total_gpu_bytes
from rayqd.rollout.own_code import check_own_code
from rayqd.rollout.parallel import check_tensor_parallel
from rayqd.rollout.sampling import describe_sampling, with_model_sampling
from rayqd.teacher.check import check_payload
from rayqd.trackers.trackers import check_trackers


@dataclass(frozen=True, slots=True, kw_only=True)
class Checked:
    """A run that can start."""

    directory: Path
    tokenizer: Any
    context_length: int
    remarks: tuple[str, ...]  # what the user should know of the model, a line each
    forward: Mapping[str, str]  # "packed", "padded" or "alone", how rows go through a model, by its role


def check(config: Config, *, trains: bool = True) -> Checked:
    """Check that the model is complete, the grid fits every layer, the teacher has its tokens, and the disk has room.

    Raises what is wrong. What `trains` writes checkpoints, anything else an export alone.
    """
    if trains:
        check_trackers(config.track)
        check_loss(config)
        check_tasks(config)
    check_user_code(config.data)
    chat = chat_settings(config.data)
    directory = student_directory(config)
    check_config(directory)
    model = load_meta_model(directory)
    layers = [*quantizable_layers(model, config.quant), *quantizable_experts(model, config.quant)]
    check_head(model, config.quant)
    check_tensor_parallel(model, config)
    counted = count_weight_bits(model, config)
    remarks = [check_weights(model, directory), describe_bits(counted), describe_dense_body(counted)]
    remarks.append(describe_head(model, config.quant))
    remarks.append(describe_unadapted(layers, config.adapter) if trains else "")
    tokenizer = load_tokenizer(directory)
    check_variables(tokenizer, chat)
    modes = {"student": find_mode(model.config)}
    check_export(model.config, config.quant)
    if trains:
        check_own_code(model, modes["student"].head, directory, config)
        check_can_be_sharded(model, quantizable_layers(model, config.quant), config)
        check_layer_by_layer(model.config, config.quant.init)
    for teacher, teacher_dir in zip(config.teachers, teacher_directories(config), strict=True):
        mode = modes["student"]
        if not teacher.is_student:
            teacher_model = load_meta_model(teacher_dir)
            mode = find_mode(teacher_model.config)
            modes[f"teacher {teacher.name}" if config.teacher.route else "teacher"] = mode
            check_weights(teacher_model, teacher_dir)
            _check_same_vocabulary(tokenizer, load_tokenizer(teacher_dir), config, teacher)
        vocab_size = common_vocab_size(directory, teacher_dir)
        _check_payload(config, len(tokenizer), vocab_size, teacher)
        if trains:
            check_payload(config, vocab_size, mode.head)
    _check_free_space(config, sum(p.numel() for p in model.parameters()), trains)
    remarks += [f"{role}: {mode.words}" for role, mode in modes.items() if mode.words]
    if trains:
        remarks += describe_sampling(config.rollout, with_model_sampling(config, directory))
    return Checked(
        directory=directory,
        tokenizer=tokenizer,
        context_length=context_length(directory),
        remarks=tuple(remark for remark in remarks if remark),
        forward={role: mode.batching.value for role, mode in modes.items()},
    )


def check_gpu_memory(checked: Checked, config: Config, placement: Placement) -> None:
    """Check that this machine's GPU has room for the roles that share it; raises PlacementError with what each needs.

    By the models' shapes alone, before a process loads anything. `placement` is of a Ray that was started here.
    """
    gpu_share = placement.gpus_per_worker["learner"]
    total = total_gpu_bytes()
    if not gpu_share or total is None or config.rollout.gpu_memory_utilization is not None:
        return
    if config.is_on_policy:
        num_tokens = min(checked.context_length, config.data.max_length + config.rollout.max_new_tokens)
        divide_gpu(total, checked.directory, config, placement.gpus_per_worker["rollout"], num_tokens, is_dense=False)
    if not config.is_on_policy or placement.gpus_per_worker["rollout"] >= 1:
        check_without_engine(total, checked.directory, config, gpu_share)


def load_data(
    checked: Checked, config: Config, on_tokenized: OnTokenized | None = None
) -> tuple[ExampleSet, ExampleSet]:
    """Return training and held-out rows, as tokens. `on_tokenized` is told now and then how far that is."""
    return load_run_data(checked.tokenizer, config, checked.context_length, on_tokenized)


def describe_data(training: ExampleSet, heldout: ExampleSet) -> list[str]:
    """Return what to say of a run's rows: `data: 200 rows of quickstart (train), 3 too long; held out: ...`."""
    shapes = [f"rows are read as {'; '.join(training.shapes)}"] if training.shapes else []
    remarks = dict.fromkeys((*training.remarks, *heldout.remarks))  # both may be of one file
    return [f"data: {summary(training)}; held out: {summary(heldout)}", *shapes, *remarks]


def summary(data: ExampleSet) -> str:
    """Format `200 rows of quickstart (train), 3 too long`; of several sources each, with a plus between."""
    if data.joined:
        return " + ".join(map(summary, data.joined))
    duplicates = [f"{data.num_duplicates:,} of them duplicates"] if data.num_duplicates else []
    return ", ".join([f"{len(data.examples)} rows of {data.source}", *duplicates, *map(str, data.left_out)])


def describe_other_vocabulary(here: Any, there: Any) -> str:
    """Say in what two tokenizers differ, with a few ids; empty where both have the same tokens."""
    ours, theirs = here.get_vocab(), there.get_vocab()
    if ours == theirs:
        return ""
    mine, its = ({i: token for token, i in vocabulary.items()} for vocabulary in (ours, theirs))
    differing = sorted(i for i in mine.keys() | its.keys() if mine.get(i) != its.get(i))
    examples = ", ".join(f"{i} is {mine.get(i)!r} here and {its.get(i)!r} there" for i in differing[:3])
    return f"{len(ours)} and {len(theirs)} tokens, {len(differing)} ids differ: {examples}"


def _check_same_vocabulary(student: Any, other: Any, config: Config, teacher: TeacherModel) -> None:
    difference = describe_other_vocabulary(student, other)
    if not difference:
        return
    values = [value for value, name in config.teacher.route.items() if name == teacher.name]
    of_values = f" (teacher.route: {', '.join(values)})" if values else ""
    raise ModelError(
        f"student {config.model.name} and teacher {teacher.name}{of_values} have different tokenizers ({difference}): "
        "choose a teacher with the student's tokenizer"
    )


def _check_payload(config: Config, num_tokens: int, vocab_size: int, teacher: TeacherModel) -> None:
    """`num_tokens` of the tokenizer, `vocab_size` ids that the heads of student and `teacher` have."""
    if num_tokens > vocab_size and teacher.is_student:
        raise ModelError(
            f"the tokenizer of {config.model.name} has {num_tokens} tokens, and its output head {vocab_size} ids: take "
            "the tokenizer that the model was trained with"
        )
    if num_tokens > vocab_size:
        raise ModelError(
            f"the tokenizer of {config.model.name} has {num_tokens} tokens, but the output heads of student and "
            f"teacher {teacher.name} have only {vocab_size} ids in common: choose a teacher with the student's "
            "vocabulary"
        )
    if config.teacher.payload == "topk" and config.teacher.top_k > vocab_size:
        raise ConfigError(
            f"teacher.top_k={config.teacher.top_k} is above the {vocab_size} ids of the vocabulary: "
            "lower it, or set teacher.payload to hidden, which is exact"
        )


def _check_free_space(config: Config, num_parameters: int, trains: bool) -> None:
    """Check that the disk has room for an export and checkpoints: what is trained with its two moments, in float32."""
    trained = num_parameters if config.adapter.kind == "none" else num_parameters // 10
    checkpoints = (config.checkpoint.keep + 1) * trained * 12 if trains else 0
    needed = num_parameters * 2 + checkpoints
    free = free_bytes(config.run_dir)
    elsewhere = config.storage and is_elsewhere(config)
    if free < needed and not elsewhere:  # the learner's disk counts, which is seldom the driver's then
        what = "checkpoints and export" if trains else "the export"
        raise StorageError(
            f"{config.run_dir} needs about {needed / 2**30:.1f} GiB for {what} and has "
            f"{free / 2**30:.1f} GiB free: make room, or set runs_dir"
        )
