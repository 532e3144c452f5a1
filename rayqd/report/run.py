"""report.html: what a run did, on one page."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup

from rayqd.config import Config, to_toml
from rayqd.config.recipe import command_line, given_settings
from rayqd.config.sections.markers import MachineSpecific, RunSpecific
from rayqd.config.settings import settings, value_text
from rayqd.console.progress import duration
from rayqd.console.result_table import how_to_run, short_path
from rayqd.events import ArmKind, ArmResult, EvalEvent, RecordedEvent, StepEvent
from rayqd.report import page
from rayqd.report.benchmarks import benchmarks
from rayqd.report.chart import arrange_charts
from rayqd.report.continuations import continuations_section
from rayqd.report.curves import run_charts
from rayqd.report.data import data_section
from rayqd.report.layers import layers_section
from rayqd.report.page import Column
from rayqd.report.result import arms, figures, gpus
from rayqd.report.startup import startup_section
from rayqd.report.time import all_of_it, busy, faults_section
from rayqd.runs.benchmarks import BenchmarkRow
from rayqd.runs.bottleneck import find_bottleneck
from rayqd.runs.continuations import Continuations
from rayqd.runs.data_file import RunData
from rayqd.runs.ending import ending_of
from rayqd.runs.environment import Environment
from rayqd.runs.paths import CONFIG, EXPORT
from rayqd.runs.result_file import Command, DistillResult, MeasuredResult, RunResult
from rayqd.runs.time_parts import DESCRIPTIONS


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """All that the page is made from; what is not there yet is left out of it."""

    config: Config
    command: Command
    events: Sequence[RecordedEvent]  # of metrics.jsonl
    result: RunResult | None  # None until it has finished
    environment: Environment
    made: datetime.datetime
    benchmarks: Sequence[BenchmarkRow] = ()  # of the export
    data: RunData | None = None  # None in runs from before it was kept
    continuations: Continuations | None = None  # of the export

    @property
    def num_done(self) -> int:
        """Return the number of optimizer steps done."""
        return max((event.step for event in self.events), default=0)

    @property
    def rows(self) -> Sequence[ArmResult]:
        """Return the result's arms, or those that are known, of the student its newest evaluation."""
        if self.result:
            return self.result.rows
        newest = {e.arm.series: e for e in self.events if isinstance(e, EvalEvent)}
        return [ArmResult(arm=event.arm, fidelity=event.fidelity) for event in newest.values()]


def run_page(run: Run) -> str:
    """Return the file's text."""
    body = [_header(run)]
    if run.rows:
        body += [figures(run.result, run.environment)] if run.result else []
        body.append(arms(run.rows, sizes=run.result is not None))
        if any(row.layer_errors for row in run.rows):
            body.append(layers_section(run.rows))
    if run.benchmarks:
        body.append(benchmarks(run.benchmarks))
    if run.continuations:
        body.append(continuations_section(run.continuations))
    if drawn := run_charts(_events(run), run.config.learner.steps):
        body.append(page.section("Training", arrange_charts(drawn), note=_how_fresh(run)))
        body.append(_time(run))
    if isinstance(run.result, DistillResult) and run.result.faults:
        body.append(faults_section(run.result.faults))
    if run.data:
        body.append(data_section(run.data))
    if run.result and run.result.startup:
        body.append(startup_section(run.result.startup))
    body += [_commands(run), _settings(run), _environment(run)]
    return page.page(f"{run.config.name} · rayqd", body, footer=f"Made by rayqd {_version(run)}.")


def _header(run: Run) -> Markup:
    config = run.config
    form = f"{config.quant.format.upper()} in groups of {config.quant.group_size}"
    when = f"{run.made.day} {run.made:%B %Y, %H:%M}"
    if run.command == "quantize":
        about = Markup("<strong>{}</strong> in {}, without training.").format(_model(config), form)
        return _titled(run, f"rayqd quantize · {when}", about)
    if isinstance(run.result, MeasuredResult):
        about = Markup("{} as it is, made elsewhere, beside <strong>{}</strong>.").format(
            short_path(Path(run.result.model)), _model(config)
        )
        return _titled(run, f"rayqd eval · {when}", about)
    own = f"its own self in {config.model.dtype}"
    teacher = " and ".join(own if each.is_student else Path(each.name).name for each in config.teachers)
    about = Markup("<strong>{}</strong> as {}, distilled from {}: {} steps of {} sequence{}, {}.").format(
        _model(config),
        form,
        teacher,
        f"{config.learner.steps:,}",
        config.learner.batch_size,
        "" if config.learner.batch_size == 1 else "s",
        _written_by(config),
    )
    notice = ""
    if run.result is None:
        notice = (
            f"Not finished: step {run.num_done:,} of {config.learner.steps:,} when this page was written. "
            "It is written again at every evaluation and at the end."
        )
    return _titled(run, f"rayqd distill · {when}", about, notice or ending_of(config, run.result))


def _titled(run: Run, kicker: str, about: Markup, notice: str = "") -> Markup:
    """Begin with the verdict in a sentence; while there is none, with what the run is."""
    verdict = run.result.verdict if run.result else None
    if verdict is None:
        return page.header(kicker, run.config.name, about, notice)
    lead = Markup("<strong>{}</strong> {} {}").format(verdict.cost, verdict.comparison, verdict.evidence)
    return page.header(kicker, run.config.name, lead, notice, about=about)


def _written_by(config: Config) -> str:
    lmbda, after = config.distill.lmbda, config.distill.on_policy_after
    if lmbda == 0:
        return "all from the data"
    written = "all written by the student" if lmbda == 1 else f"{lmbda:.0%} of them written by the student"
    return f"{written} after the first {after:.0%} of the steps" if after else written


def _how_fresh(run: Run) -> str:
    steps = [event.learner for event in run.events if isinstance(event, StepEvent)]
    if not any(step.num_on_policy for step in steps):
        return ""
    stale = max(step.staleness for step in steps)
    chosen = [step for step in steps if step.max_staleness is not None]
    auto = f" rollout.max_staleness auto: {chosen[0].max_staleness} from step {chosen[0].step} on." if chosen else ""
    written = (
        "The student wrote with the learner's newest weights at every step (staleness 0)."
        if not stale
        else f"The student wrote with weights up to {stale} versions old."
    )
    return written + auto


def _time(run: Run) -> Markup:
    steps = [event for event in run.events if isinstance(event, StepEvent)]
    retries = max((step.roles.num_retries for step in steps), default=0)
    total = sum(step.learner.wait_seconds + step.learner.learner_seconds for step in steps)
    parts = run.result.parts if run.result else None
    note = f"Of the {duration(total)} that the steps took, how long a worker of each role was busy."
    if parts:
        assert run.result
        note = (
            f"The {duration(run.result.seconds['total'])} of the last start: {_explained(parts)}. Under it, of "
            f"{duration(total)} that all steps took, how long a worker of each role was busy, which overlaps."
        )
    cluster = run.environment.cluster
    if cluster and (found := find_bottleneck(steps, run.config, cluster.gpus)):
        note += f" What limits them: {found.sentence}."
    if retries:
        note += f" {retries} calls were asked for again because a worker died."
    drawn = [all_of_it(parts)] if parts else []
    return page.section("Where the time went", *drawn, busy(steps, run.config), note=note)


def _explained(parts: Mapping[str, float]) -> str:
    return "; ".join(f"{name}, {DESCRIPTIONS[name]}" for name in parts if name in DESCRIPTIONS)


def _commands(run: Run) -> Markup:
    directory = short_path(run.config.run_dir)
    if isinstance(run.result, MeasuredResult):
        words = f"rayqd eval {run.result.model} --as-run @{directory / CONFIG} --name {run.config.name}-again"
        return page.section("Make it again", page.code(words))
    verb, command, remark = how_to_run(run.config.quant.format, directory / EXPORT)
    use = [(command, ", ".join(filter(None, [verb, remark]))), (f"rayqd eval {directory}", "measure the export again")]
    if run.command == "distill":
        use.append((f"rayqd export {directory} --verify", "compare it with the checkpoint, bit for bit"))
    again = f"rayqd {run.command} @{directory / CONFIG} --name {run.config.name}-again"
    flags = command_line(given_settings(run.config, run.command, [MachineSpecific]).items(), run.command)
    return page.section(
        "Use it, make it again" if run.result else "Make it again",
        *([page.code(_aligned(use))] if run.result else []),
        page.code(again),
        page.details("The same without its file", page.code(flags)),
    )


def _settings(run: Run) -> Markup:
    given = given_settings(run.config, run.command, [RunSpecific])
    rows = [
        [page.inline_code(key), page.inline_code(_value(value)), page.inline_code(_value(settings()[key].default))]
        for key, value in given.items()
    ]
    titles = [Column(title="setting"), Column(title="here"), Column(title="default")]
    shown = page.table(titles, rows, tight=True) if rows else Markup("<p>Every setting has its default.</p>")
    every = page.details("Every setting, as config.toml has them", page.code(to_toml(run.config).rstrip()))
    return page.section("Settings that are not the default", shown, every)


def _environment(run: Run) -> Markup:
    machine, cluster = run.environment.machine, run.environment.cluster
    about = [
        ["processor", machine.processor],
        ["cores", machine.cores],
        ["memory", f"{machine.memory_gib:g} GiB"],
        ["system", machine.system],
    ]
    if cluster and cluster.gpus:
        about.append(["GPUs", gpus(cluster)])
    if cluster and cluster.nodes > 1:
        about.append(["Ray cluster", f"{cluster.nodes} nodes, {cluster.cpus:g} CPUs"])
    versions = [[name, number] for name, number in run.environment.versions.items()]
    bare = [Column(title=""), Column(title="")]
    tables = [page.table(bare, rows, tight=True) for rows in (about, versions)]
    return page.section("Machine and software", page.columns(*tables))


def _events(run: Run) -> list[RecordedEvent]:
    """With what the result says of the trained student as its last evaluation."""
    last = run.result.num_steps if isinstance(run.result, DistillResult) else run.config.learner.steps
    if any(isinstance(event, EvalEvent) and event.step == last for event in run.events):  # where the best is looked for
        return [*run.events]
    rows = run.result.rows if run.result else ()
    trained = [row for row in rows if row.arm.kind is ArmKind.DISTILLED]
    return [*run.events, *(EvalEvent(step=last, arm=row.arm, fidelity=row.fidelity) for row in trained)]


def _model(config: Config) -> str:
    path = Path(config.model.name)
    return path.name if path.is_absolute() else config.model.name


def _value(value: object) -> str:
    return str(value) if isinstance(value, str | Path) else value_text(value)


def _aligned(lines: Sequence[tuple[str, str]]) -> str:
    """Commands, with their remarks under each other."""
    width = max(len(command) for command, _ in lines)
    return "\n".join(f"{command:{width}}  # {remark}" for command, remark in lines)


def _version(run: Run) -> str:
    return run.environment.versions.get("rayqd", "")
