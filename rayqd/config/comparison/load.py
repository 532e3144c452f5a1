"""Files and flags to a comparison. [compare] is a section like the others: later files win, flags over files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from pydantic import ValidationError

from rayqd.config.arguments import Arguments, Flag
from rayqd.config.assignment import Assignment
from rayqd.config.comparison.arms import ArmSpec, find_problems, for_arms, read_arms
from rayqd.config.comparison.fields import ARMS, OWN, comparison_group, comparison_settings, is_own
from rayqd.config.help import group_help
from rayqd.config.hints import nearest_word
from rayqd.config.load import explain_value, first_error, flag_origin, parse_value, resolve
from rayqd.config.own_section import OVER_ALL, read_files_and_flags, take_apart
from rayqd.config.sections import Config
from rayqd.config.sections.compare import CompareConfig
from rayqd.config.settings import value_text
from rayqd.config.sweep.checks import why_not_swept
from rayqd.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class ComparisonSpec:
    """What all arms have in common, and what they differ in."""

    compare: CompareConfig
    arms: tuple[ArmSpec, ...]  # in the order of the file; one of the kind rtn is always among them
    common: tuple[Assignment, ...]

    @property
    def reference(self) -> ArmSpec:
        """Return the arm that the others are held against."""
        names = {arm.name: arm for arm in self.arms}
        if self.compare.against:
            return names[self.compare.against]
        return names.get("off-policy") or next((arm for arm in self.arms if arm.trains), self.arms[-1])

    def asks_learner(self, arm: ArmSpec) -> bool:
        """Return whether the learner answers the benchmarks of an arm that has no rollouts, and so no engine to ask."""
        shared = {assignment.key: assignment.value for assignment in self.common}
        has_none = arm.settings.get("distill.lmbda", shared.get("distill.lmbda")) == 0
        return has_none and shared.get("eval.where") == "rollout"

    def config(self, arm: ArmSpec | None = None, values: Mapping[str, object] | None = None) -> Config:
        """Return the Config of an arm, or what all share, with `values`, by dotted name, laid over it.

        Raises ConfigError at what the settings refuse.
        """
        over = {**(arm.settings if arm else {}), **(values or {})}
        if arm and self.asks_learner(arm):
            over["eval.where"] = "learner"
        prefix = f"{ARMS}{arm.name}." if arm else ""
        return resolve([*self.common, *(_over(f"{prefix}{key}", key, value) for key, value in over.items())])


def load_comparison(argv_parts: Sequence[str]) -> ComparisonSpec:
    """Return the comparison that `[@file.toml ...] [--section.field VALUE ...]` describes.

    Raises ConfigError, in one line, as `load_config` does, and at arms that cannot be.
    """
    return comparison_of(read_files_and_flags(argv_parts))


def comparison_of(arguments: Arguments) -> ComparisonSpec:
    """Return the comparison of arguments already read."""
    if in_flags := [flag for flag in arguments.flags if _is_of_arms(flag.key)]:
        raise ConfigError(f"{flag_origin(in_flags[0])}: arms stand in a file: [compare.arms]")
    parts = take_apart(arguments, is_own, name="compare")
    config = parts.config
    own = [each for each in parts.own if not _is_of_arms(each.key)] + [_from_flag(flag) for flag in parts.own_flags]
    arms, problems = read_arms([each for each in parts.own if _is_of_arms(each.key) and each.key != ARMS[:-1]])
    compare, wrong = _resolve_own(own)
    problems = wrong + problems + [problem for arm in arms for problem in find_problems(arm, config)]
    if problems or compare is None:
        raise first_error(problems)
    spec = ComparisonSpec(compare=compare, arms=tuple(_with_rtn(arms)), common=parts.common)
    if problems := list(_find_contradictions(spec, arms, config)):
        raise first_error(problems)
    for arm in spec.arms:
        spec.config(arm)
    return spec


def comparison_help() -> str:
    """Return every setting of [compare], as `settings_help` has those of a run."""
    return "\n".join(group_help(comparison_group()))


def _over(name: str, key: str, value: object) -> Assignment:
    return Assignment(key=key, value=value, origin=f"{name} = {value_text(value)}", layer=OVER_ALL)


def _is_of_arms(key: str) -> bool:
    return f"{key}.".startswith(ARMS)


def _from_flag(flag: Flag) -> Assignment:
    value = _read_flag(flag.text, flag.key) if flag.key in comparison_settings() else flag.text
    return Assignment(key=flag.key, value=value, origin=flag_origin(flag))


def _read_flag(text: str, key: str) -> object:
    value = parse_value(text, comparison_settings()[key])
    if key != "compare.seeds" or not isinstance(value, list):
        return value
    words = [str(word) for word in value]  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType]
    return [int(word) if word.isdecimal() else word for word in words]


def _resolve_own(own: Sequence[Assignment]) -> tuple[CompareConfig | None, list[str]]:
    final = {assignment.key: assignment for assignment in own}
    known = comparison_settings()
    problems = [_explain_unknown(each) for each in final.values() if each.key not in known]
    fields = {key.removeprefix(OWN): given.value for key, given in final.items() if key in known}
    try:
        return CompareConfig.model_validate(fields, strict=True), problems
    except ValidationError as error:
        keys = dict.fromkeys(f"{OWN}{details['loc'][0]}" for details in error.errors())
        return None, problems + [explain_value(final[key], known[key]) for key in keys]


def _explain_unknown(assignment: Assignment) -> str:
    names = [*(key.removeprefix(OWN) for key in comparison_settings()), "arms"]
    if assignment.key == "compare":
        return f"{assignment.origin}: is a section; set {', '.join(names)} in it"
    near = nearest_word(assignment.key.removeprefix(OWN), names)
    hint = f"did you mean {OWN}{near}?" if near else f"there are {', '.join(names)}"
    return f"{assignment.origin}: unknown setting {assignment.key}; {hint}"


def _with_rtn(arms: Sequence[ArmSpec]) -> list[ArmSpec]:
    """Put the arm of rounding before the others where nobody asked for it: recovery is measured from there."""
    if any(arm.kind == "rtn" and not arm.values for arm in arms):
        return list(arms)
    return [ArmSpec(name="rtn", kind="rtn", values={}), *arms]


def _find_contradictions(spec: ComparisonSpec, given: Sequence[ArmSpec], config: Config) -> Iterator[str]:
    compare, names = spec.compare, [arm.name for arm in spec.arms]
    if not given:
        yield "a comparison needs arms: [compare.arms] in its file, each a line as on-policy = {}"
    elif len([arm for arm in spec.arms if arm.command]) < 2:
        yield "a comparison needs two arms beside the teacher"
    if len(set(names)) < len(names):
        yield "compare.arms.rtn: the name rtn is of plain rounding; call an arm with other settings something else"
    if compare.against is not None and compare.against not in names:
        near = nearest_word(compare.against, names)
        yield f"compare.against = {compare.against}: no arm has that name; " + (
            f"did you mean {near}?" if near else f"there are {', '.join(names)}"
        )
    elif spec.reference.kind == "teacher":
        yield "compare.against = teacher: every KL is to the teacher already; name another arm"
    if len(set(compare.seeds)) < len(compare.seeds) or any(seed < 0 for seed in compare.seeds):
        yield f"compare.seeds = {value_text(compare.seeds)}: must be different whole numbers of at least 0"
    elif len(compare.seeds) > 1 and (why := next(why_not_swept("seed", config), None)):
        yield f"compare.seeds = {value_text(compare.seeds)}: {for_arms(why)}"
    if compare.budget != "steps" and compare.amount is None:
        yield f"compare.budget = {compare.budget}: needs compare.amount, how much of it each arm has"
    elif compare.budget == "steps" and compare.amount is not None and not compare.amount.is_integer():
        yield f"compare.amount = {compare.amount}: must be a whole number of steps"
    if config.eval.continuations and len(config.teachers) > 1:
        yield (
            f"eval.continuations = {config.eval.continuations} holds every student against one teacher along its own "
            "text, and teacher.route names several: leave it out (--eval.continuations 0)"
        )
    if any(arm.trains for arm in spec.arms) and config.distill.seq_kd:
        yield "distill.seq_kd: the arms do not each write: let `rayqd generate --model teacher` write once"
