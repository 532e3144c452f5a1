"""What the markers on the fields say, beside the names written out by hand."""

import pytest

from rayqd.config.sections import markers
from rayqd.config.sections.markers import (
    AbsolutePath,
    ChangesBenchmarks,
    ChangesCompletions,
    ChangesEvaluationOnly,
    ChangesHeldOut,
    Housekeeping,
    HubIdOrPath,
    IgnoredBy,
    MachineSpecific,
    Marker,
    NotSwept,
    OfOneSource,
    RunSpecific,
    SameResult,
)
from rayqd.config.settings import settings, settings_in, settings_with
from rayqd.config.sweep.fields import sweep_settings

EXPECTED: dict[type[Marker], str] = {
    OfOneSource: "data.source data.split data.subset data.columns",
    SameResult: """
        runs_dir storage model.trust_remote_code model.compile rollout.num_workers rollout.max_concurrent
        rollout.tensor_parallel rollout.gpu_memory_utilization rollout.engine
        teacher.num_workers teacher.gpus_per_worker teacher.offload
        teacher.max_batch_tokens teacher.prefetch_steps teacher.cache_gib teacher.cache_dir teacher.max_bad_fraction
        learner.num_workers learner.microbatch_tokens learner.max_bad_steps learner.gradient_checkpointing
        eval.every eval.tasks eval.tasks_dir eval.num_fewshot eval.task_limit eval.task_batch_size
        eval.apply_chat_template eval.local_data eval.task_max_new_tokens eval.think_end
        eval.tasks_every eval.where eval.backend
        eval.continuations eval.rtn ray.* checkpoint.every checkpoint.keep
        track track_project""",
    NotSwept: "name runs_dir teacher.column teacher.route data.date eval.* ray.* track track_project",
    ChangesHeldOut: """
        seed data.source data.split data.subset data.sources data.on_bad_row data.max_length data.min_room
        data.reader data.filter
        data.columns data.chat_template data.chat_template_kwargs data.train_on data.date""",
    ChangesEvaluationOnly: "eval.*",
    ChangesBenchmarks: """
        eval.tasks eval.num_fewshot eval.task_limit eval.task_batch_size eval.apply_chat_template
        eval.local_data eval.task_max_new_tokens eval.think_end eval.backend""",
    ChangesCompletions: """
        seed model.dtype data.split data.subset data.sources data.max_length data.min_room data.reader data.filter
        data.columns data.chat_template data.chat_template_kwargs data.date
        rollout.min_new_tokens rollout.max_new_tokens rollout.temperature rollout.top_p rollout.top_k rollout.min_p
        rollout.repetition_penalty rollout.stop""",
    RunSpecific: "name runs_dir",
    MachineSpecific: "runs_dir ray.* track track_project",
    Housekeeping: "checkpoint.every checkpoint.keep track track_project",
    HubIdOrPath: "model.name teacher.name teacher.route data.source data.sources eval.source eval.text",
    AbsolutePath: "runs_dir storage teacher.cache_dir eval.tasks_dir",
    IgnoredBy: """
        quant.method quant.init adapter.* distill.* rollout.* learner.* track track_project
        eval.patience eval.min_delta checkpoint.best""",
}


def keys(names: str) -> set[str]:
    """The settings that `names` are, of which `section.*` are all in a section."""
    return {key for name in names.split() for key in (settings_in(name[:-2]) if name.endswith(".*") else [name])}


@pytest.mark.parametrize("marker", EXPECTED, ids=lambda marker: marker.__name__)
def test_a_marker_is_on_the_settings_that_it_is_meant_for(marker: type[Marker]) -> None:
    assert set(settings_with(marker)) == keys(EXPECTED[marker])


def test_no_marker_is_left_out_here() -> None:
    kinds = {value for value in vars(markers).values() if isinstance(value, type) and issubclass(value, Marker)}
    assert set(EXPECTED) == kinds - {Marker}


def test_a_command_ignores_its_own_settings_alone() -> None:
    by_command = {
        command: {key for key, setting in settings().items() if IgnoredBy(command) in setting.markers}
        for command in ("distill", "quantize")
    }
    assert by_command == {
        "distill": {"quant.method"},
        "quantize": keys(
            "quant.init adapter.* distill.* rollout.* learner.* track track_project "
            "eval.patience eval.min_delta checkpoint.best"
        ),
    }


def test_what_every_source_goes_through_changes_the_held_out_rows_of_eval_source_too() -> None:
    too = {key for key, setting in settings().items() if ChangesHeldOut(of_eval_source_too=True) in setting.markers}
    chat = {f"data.{name}" for name in ("columns", "chat_template", "chat_template_kwargs", "train_on", "date")}
    assert too == {"data.max_length", "data.min_room", "data.reader", "data.filter", *chat}


def test_only_files_are_data_sets() -> None:
    only_files = {key for key, setting in settings().items() if HubIdOrPath(only_files=True) in setting.markers}
    assert only_files == {"data.source", "data.sources", "eval.source", "eval.text"}


def test_results_outlive_the_directory_of_a_job() -> None:
    lasting = {key for key, setting in settings().items() if AbsolutePath(lasting=True) in setting.markers}
    assert lasting == {"runs_dir", "storage"}


def test_of_a_sweep_only_how_many_run_at_a_time_changes_no_trial() -> None:
    assert {key for key, setting in sweep_settings().items() if setting.markers} == {"sweep.max_concurrent"}
    assert sweep_settings()["sweep.max_concurrent"].markers == (SameResult(),)
