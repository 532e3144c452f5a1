"""A Config written out, and what separates two of them."""

from __future__ import annotations

from pathlib import Path

from rayqd.config.job import lasting_directory
from rayqd.config.sections import Config
from rayqd.config.settings import Setting, groups, settings, value_text

# Where it runs, how often it looks and how much fits in memory: none of it changes what comes out.
WITHOUT_EFFECT = frozenset({
    "runs_dir",
    "storage",
    "model.compile",
    "rollout.num_workers",
    "rollout.max_concurrent",
    "rollout.gpu_memory_utilization",
    "teacher.num_workers",
    "teacher.max_batch_tokens",
    "teacher.cache_gib",
    "teacher.cache_dir",
    "teacher.max_bad_fraction",
    "learner.num_workers",
    "learner.microbatch_tokens",
    "learner.gradient_checkpointing",
    "eval.every",
    "eval.tasks",
    "eval.tasks_dir",
    "eval.num_fewshot",
    "eval.task_limit",
    "eval.task_batch_size",
    "eval.apply_chat_template",
    "eval.rtn",
})  # fmt: skip
SECTIONS_WITHOUT_EFFECT = ("ray.", "checkpoint.")


def to_toml(config: Config) -> str:
    """`config` as TOML that `load_config` reads back to the same Config. Unset settings are left out."""
    blocks: list[str] = []
    for group in groups():
        lines = [f"[{group.name}]"] if group.name else []
        for setting in group.settings:
            value = setting_value(config, setting.key)
            if value is not None or setting.default is not None:
                lines.append(f"{setting.key.rpartition('.')[2]} = {value_text(value)}")
        if lines != [f"[{group.name}]"]:
            blocks.append("\n".join(lines))
    return "\n\n".join(blocks) + "\n"


def differences(old: Config, new: Config) -> list[str]:
    """The settings that differ and change the result, as "learner.lr: 0.001 -> 0.0005"."""
    return [
        f"{key}: {value_text(before)} -> {value_text(after)}"
        for key, setting in settings().items()
        if has_effect(setting) and (before := setting_value(old, key)) != (after := setting_value(new, key))
    ]


def with_absolute_paths(config: Config) -> Config:
    """Workers and later readers have other working directories, so a path means something only if it is whole."""

    def whole(name: str | None) -> str | None:
        path = Path(name).expanduser() if name else None
        return str(path.absolute()) if path and path.exists() else name

    def whole_file(source: str | None) -> str | None:
        return whole(source) if source and Path(source).expanduser().is_file() else source

    cache_dir = config.teacher.cache_dir and config.teacher.cache_dir.expanduser().absolute()
    tasks_dir = config.eval.tasks_dir and config.eval.tasks_dir.expanduser().absolute()
    return config.model_copy(
        update={
            "runs_dir": lasting_directory() / config.runs_dir.expanduser(),
            "storage": _whole_place(config.storage),
            "model": config.model.model_copy(update={"name": whole(config.model.name)}),
            "teacher": config.teacher.model_copy(update={"name": whole(config.teacher.name), "cache_dir": cache_dir}),
            "data": config.data.model_copy(update={"source": whole_file(config.data.source)}),
            "eval": config.eval.model_copy(update={"source": whole_file(config.eval.source), "tasks_dir": tasks_dir}),
        }
    )


def _whole_place(storage: str | None) -> str | None:
    return storage if storage is None or "://" in storage else str(lasting_directory() / Path(storage).expanduser())


def setting_value(config: Config, key: str) -> object:
    """The value at a dotted key."""
    value: object = config
    for name in key.split("."):
        value = getattr(value, name)
    return value


def has_effect(setting: Setting) -> bool:
    """Whether another value gives another result, so that a run cannot be resumed with it."""
    return setting.key not in WITHOUT_EFFECT and not setting.key.startswith(SECTIONS_WITHOUT_EFFECT)
