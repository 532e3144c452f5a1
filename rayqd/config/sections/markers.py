"""What a setting means to those who handle it: markers on the fields, `Annotated[int, SameResult()]`.

A marker on a section in `Config` counts for all settings of the section. `rayqd.config.settings.settings_with` lists
the settings that carry one, so that no other file has a list of names that a new setting could be missing from.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Marker:
    """The base class of all markers."""


@dataclass(frozen=True, slots=True)
class SameResult(Marker):
    """Changes where and how fast a run goes, and how much memory it takes, not what comes out: a run resumes with
    another value."""

    unless: tuple[str, ...] = ()  # keys of settings; where one of them has not its default, it does change the result
    unless_best_is_task: bool = False  # where a benchmark decides which weights are exported, it does


@dataclass(frozen=True, slots=True)
class IgnoredBy(Marker):
    """A command does not read it, so that it is no part of how to repeat what the command made."""

    command: str


@dataclass(frozen=True, slots=True)
class NotSwept(Marker):
    """The trials of a sweep cannot differ in it."""

    why: str


@dataclass(frozen=True, slots=True)
class ChangesHeldOut(Marker):
    """Changes which rows are held out: those taken from the training data, where `eval.source` is none."""

    of_eval_source_too: bool = False


@dataclass(frozen=True, slots=True)
class ChangesEvaluationOnly(Marker):
    """Changes what is measured of the student, not the student: an export may be verified with another value."""


@dataclass(frozen=True, slots=True)
class ChangesBenchmarks(Marker):
    """Kept with the scores of benchmarks, which depend on it."""


@dataclass(frozen=True, slots=True)
class ChangesCompletions(Marker):
    """`rayqd generate`: completions sampled with another value belong in another file."""


@dataclass(frozen=True, slots=True)
class RunSpecific(Marker):
    """Always differs between two runs, so that a comparison leaves it out."""


@dataclass(frozen=True, slots=True)
class MachineSpecific(Marker):
    """Describes the machines that a run had: nothing to repeat elsewhere, or to publish."""


@dataclass(frozen=True, slots=True)
class Housekeeping(Marker):
    """About files of the run that its export does not come with."""


@dataclass(frozen=True, slots=True)
class HubIdOrPath(Marker):
    """A name on the hub, or a path: made absolute where it exists, and published without the way to it."""

    only_files: bool = False  # a directory of that name is a coincidence


@dataclass(frozen=True, slots=True)
class OfOneSource(Marker):
    """Says what one data set is: not read, and not written, where `data.sources` names several."""


@dataclass(frozen=True, slots=True)
class AbsolutePath(Marker):
    """Made absolute, as workers have other working directories; a URI stays."""

    lasting: bool = False  # where results go: not into the copy of the working directory that Ray makes for a job
