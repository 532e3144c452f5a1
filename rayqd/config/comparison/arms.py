"""The arms of a comparison: their kinds, and what can be wrong with one, as a line."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, cast

from rayqd.config.comparison.fields import ARMS
from rayqd.config.hints import nearest_word
from rayqd.config.load import Assignment
from rayqd.config.sections import Config
from rayqd.config.sections.markers import IgnoredBy
from rayqd.config.settings import value_text
from rayqd.config.source_list import find_setting
from rayqd.config.sweep.checks import why_not_swept

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_=-]*")
_OF_THE_COMPARISON = {
    "seed": "compare.seeds has the seeds of all arms",
    "learner.steps": "compare.budget and compare.amount say how long every arm trains",
    "eval.continuations": "every arm goes on from the same prompts; set it for all",
}

_OWN_DIRECTORIES = ("baselines", "figures")  # of the comparison itself; an arm that no seed changes has its own name

ArmCommand = Literal["", "quantize", "eval", "distill"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """A kind of arm: the command that makes it, and the settings that it stands for."""

    command: ArmCommand  # "" where nothing is made: the teacher is there
    values: Mapping[str, object] = field(default_factory=dict[str, object])

    @property
    def trains(self) -> bool:
        """Return whether it has optimizer steps, and so a budget."""
        return self.command == "distill"


def _written_by_the_student(share: float) -> Kind:
    return Kind(command="distill", values={"distill.lmbda": share, "distill.on_policy_after": 0.0})


KINDS = {
    "teacher": Kind(command=""),
    "rtn": Kind(command="quantize", values={"quant.method": "rtn"}),
    "gptq": Kind(command="quantize", values={"quant.method": "gptq"}),
    "awq": Kind(command="quantize", values={"quant.method": "awq"}),
    "autoround": Kind(command="quantize", values={"quant.method": "autoround"}),
    "off-policy": _written_by_the_student(0.0),
    "mixed": _written_by_the_student(0.5),
    "on-policy": _written_by_the_student(1.0),
    "distill": Kind(command="distill"),  # any settings
    "model": Kind(command="eval"),  # made elsewhere, and measured as it is
}
_NOTES = {"distill": " (any settings)", "model": " (a path)"}


@dataclass(frozen=True, slots=True, kw_only=True)
class ArmSpec:
    """An arm: its name, its kind, and the settings that are its own beside those of the kind."""

    name: str
    kind: str
    values: Mapping[str, object]
    origin: str = ""  # where it was given
    path: str = ""  # of the kind model: its directory, or its name on the hub

    @property
    def command(self) -> ArmCommand:
        """Return the command that makes it."""
        return KINDS[self.kind].command

    @property
    def trains(self) -> bool:
        """Return whether it has optimizer steps."""
        return KINDS[self.kind].trains

    @property
    def is_made_elsewhere(self) -> bool:
        """Return whether it is a model that is there, of which nobody knows what it cost."""
        return self.kind == "model"

    @property
    def settings(self) -> dict[str, object]:
        """Return its settings by dotted name, those of its kind included."""
        return {**KINDS[self.kind].values, **self.values}


def read_arms(given: Sequence[Assignment]) -> tuple[list[ArmSpec], list[str]]:
    """Return the arms that the assignments under `compare.arms` describe, in their order, and what is wrong."""
    parts: dict[str, list[Assignment]] = {}
    problems: list[str] = []
    for assignment in given:
        name, _, _ = assignment.key.removeprefix(ARMS).partition(".")
        if not _NAME.fullmatch(name):
            problems.append(f"{assignment.origin}: the name of an arm has letters, digits, and - _ = alone")
        elif name in _OWN_DIRECTORIES:
            problems.append(f"{assignment.origin}: the comparison's own files are called {name}; take another name")
        parts.setdefault(name, []).append(assignment)
    arms: list[ArmSpec] = []
    for name, own in parts.items():
        found, wrong = _read_arm(name, own)
        problems += wrong
        arms += [found] if found else []
    return arms, problems


def find_problems(arm: ArmSpec, config: Config) -> Iterator[str]:
    """Yield why an arm cannot have the settings that it has; `config` is what all arms share."""
    for key, value in arm.values.items():
        origin = f"{ARMS}{arm.name}.{key} = {value_text(value)}"
        setting = find_setting(key)
        if arm.is_made_elsewhere:
            yield f"{origin}: a model is measured as it is, with the settings that all arms share; it has a path alone"
        elif key == "path":
            yield f'{origin}: goes with kind = "model" alone'
        elif why := _OF_THE_COMPARISON.get(key):
            yield f"{origin}: {why}"
        elif key in KINDS[arm.kind].values:
            own = value_text(KINDS[arm.kind].values[key])
            yield f"{origin}: the kind {arm.kind} sets {key} = {own} already; leave it out, or write another kind"
        elif wrong := next(why_not_swept(key, config), None):
            yield f"{origin}: {for_arms(wrong)}"
        elif setting and any(m.command == arm.command for m in setting.markers if isinstance(m, IgnoredBy)):
            yield f"{origin}: rayqd {arm.command}, which makes arms of the kind {arm.kind}, does not read {key}"


def for_arms(text: str) -> str:
    """Return what is said of a sweep's trials as it is said of arms."""
    return text.replace("cannot be swept", "must be the same for all arms").replace("all trials", "all arms")


def _read_arm(name: str, given: Sequence[Assignment]) -> tuple[ArmSpec | None, list[str]]:
    prefix = ARMS + name
    final = {assignment.key: assignment for assignment in given}
    values = {
        key.removeprefix(f"{prefix}."): _value(assignment, key.removeprefix(f"{prefix}."))
        for key, assignment in final.items()
        if key not in (prefix, f"{prefix}.kind")
    }
    origin = given[0].origin
    whole = final.get(prefix)
    if whole and whole.value != {}:
        return None, [f'{origin}: must be a table of settings: {name} = {{kind = "on-policy", learner.lr = 1e-4}}']
    kind = final[f"{prefix}.kind"].value if f"{prefix}.kind" in final else name
    if kind not in KINDS:
        return None, [_explain_kind(name, kind, final)]
    path = values.pop("path", "") if kind == "model" else ""
    if kind == "model" and not (isinstance(path, str) and path):
        given_path = final.get(f"{prefix}.path", given[0]).origin
        return None, [f'{given_path}: a model needs its directory, or its name on the hub: path = "out/autoround-w4"']
    return ArmSpec(name=name, kind=cast("str", kind), values=values, origin=origin, path=cast("str", path)), []


def _explain_kind(name: str, kind: object, final: Mapping[str, Assignment]) -> str:
    """Say that a kind is unknown; an arm without one has the kind that its name says."""
    origin = final.get(f"{ARMS}{name}.kind", next(iter(final.values()))).origin
    near = nearest_word(str(kind), KINDS)
    hint = f"did you mean {near}? " if near else ""
    own = f"an arm called {name} needs a kind: " if kind == name else ""
    if kind == name and f"{ARMS}{name}.path" in final:
        return f'{origin}: an arm called {name} needs a kind: of one with a path it is kind = "model"'
    known = ", ".join(f"{name}{_NOTES.get(name, '')}" for name in KINDS)
    return f"{origin}: unknown kind of arm {kind}; {hint}{own}there are {known}"


def _value(assignment: Assignment, key: str) -> object:
    setting = find_setting(key)
    return None if setting and setting.optional and assignment.value == "none" else assignment.value
