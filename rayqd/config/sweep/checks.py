"""What can be wrong with a sweep, each as one line."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping

from pydantic_core import ErrorDetails

from rayqd.config.hints import hint_for_setting
from rayqd.config.load import Assignment, explain_value
from rayqd.config.sections import Config
from rayqd.config.sections.markers import ChangesHeldOut, NotSwept
from rayqd.config.sections.sweep import Span, SweepConfig
from rayqd.config.settings import Setting, section_names, value_text
from rayqd.config.source_list import explain_missing_table, explain_unknown_field, find_setting, is_field
from rayqd.config.sweep.fields import OVER, sweep_settings

_ONE_HELD_OUT = "all trials must be measured on the same rows"


def explain_unknown(assignment: Assignment) -> str | None:
    """Say why a key is no setting of [sweep]; None where it is one."""
    key, origin = assignment.key, assignment.origin
    if key in sweep_settings() or key.startswith(OVER):
        return None
    if key in ("sweep", "sweep.over"):
        return f"{origin}: is a section; set sweep.search, or sweep.over.learner.lr"
    names = [*sweep_settings(), "sweep.over"]
    near = difflib.get_close_matches(key, names, n=1)
    hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(names)}"
    return f"{origin}: unknown setting {key}; {hint}"


def why_not_swept(key: str, config: Config) -> Iterator[str]:
    """Yield why the trials of a sweep cannot differ in `key`; nothing where they can."""
    if key in section_names():
        yield f"{key} is a section; name a setting in it"
    elif (setting := find_setting(key)) is None:
        yield f"unknown setting {key}; {explain_unknown_field(key) if is_field(key) else hint_for_setting(key)}"
    elif why := _why_never(setting):
        yield f"{key} cannot be swept: {why}"
    elif missing := explain_missing_table(key, config.data.sources):
        yield missing
    elif setting.marker(ChangesHeldOut) and config.eval.source is None:
        yield f"{key} changes which rows are held out, and {_ONE_HELD_OUT}: name an eval.source"


def _why_never(setting: Setting) -> str | None:
    if never := setting.marker(NotSwept):
        return never.why
    held_out = setting.marker(ChangesHeldOut)
    if held_out and held_out.of_eval_source_too:
        return f"it changes which are held out, and {_ONE_HELD_OUT}"
    return None


def explain(error: ErrorDetails, final: Mapping[str, Assignment], origins: Mapping[str, str]) -> str:
    """Say what is wrong with a value that [sweep] refuses."""
    location = [str(part) for part in error["loc"]]
    key = f"sweep.{location[0]}"
    if key in final:
        return explain_value(final[key], sweep_settings()[key])
    origin, message = origins[location[1]], error["msg"]
    if message.startswith("Value error, "):
        return f"{origin}: {message.removeprefix('Value error, ')}"
    return f"{origin}: must be a list of values, or a range {{low = NUMBER, high = NUMBER, log = true}}"


def find_problems(sweep: SweepConfig, origins: Mapping[str, str]) -> Iterator[str]:
    """Yield what does not go together in `sweep`; `origins` say where each swept setting was given."""
    if not sweep.over:
        yield "a sweep needs settings to try: [sweep.over] in its file, or --sweep.over.learner.lr 1e-4,3e-4"
    if sweep.search == "grid" and sweep.num_trials is not None:
        yield f"sweep.num_trials={sweep.num_trials}: a grid tries every combination; leave it out, or search at random"
    if sweep.scheduler == "asha" and "learner.steps" in sweep.over:
        yield f'{origins["learner.steps"]}: asha compares trials of one length; set sweep.scheduler = "none"'
    for key, dimension in sweep.over.items():
        if isinstance(dimension, Span):
            problem = _problem_of_span(key, sweep)
        else:
            problem = _problem_of_list([value_text(value) for value in dimension])
        if problem:
            yield f"{origins[key]}: {problem}"


def _problem_of_span(key: str, sweep: SweepConfig) -> str | None:
    if (setting := find_setting(key)) is None or setting.kind not in ("number", "integer"):
        return f"{key} is no number: give a list of values"
    if sweep.search == "grid":
        return 'a grid takes lists; give one, or set sweep.search = "random" or "optuna"'
    return None


def _problem_of_list(values: list[str]) -> str | None:
    if not values:
        return "the list is empty"
    return "the list names a value twice" if len(set(values)) < len(values) else None
