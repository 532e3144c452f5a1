"""The table at the end of a run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.console import Console

from rayqd.config import Config
from rayqd.console.progress import duration
from rayqd.console.say import say, wrap
from rayqd.console.tables import Column, print_table
from rayqd.events import ArmResult, StepEvent
from rayqd.runs.bottleneck import Bottleneck, find_bottleneck
from rayqd.runs.config_file import load_run_config
from rayqd.runs.ending import ending_of
from rayqd.runs.metrics_file import read_events
from rayqd.runs.paths import CONFIG, EXPORT, METRICS, REPORT, RESULT
from rayqd.runs.result_file import DistillResult, RunResult
from rayqd.runs.startup import Startup, list_innermost
from rayqd.runs.storage.folder import redact
from rayqd.spans import Span

_COLUMNS = (
    Column(heading="", is_label=True),
    Column(heading="KL to\nteacher"),
    Column(heading="same\ntop-1", rank=2),
    Column(heading="perplexity", rank=1),
    Column(heading="bits/\nweight", rank=3),
    Column(heading="size", rank=4),
)


def print_result(console: Console, result: RunResult, run_dir: Path, title: str) -> None:
    """Print the verdict, rows by arm, where the time went, where everything lies, and the command that runs it."""
    console.print()
    for line in _verdict_lines(result, console.width):
        say(console, line)
    print_table(console, _COLUMNS, [_cells(row) for row in result.rows], title=f"{result.name}: {title}")
    for line in _notes(result, run_dir):
        say(console, line)


def _verdict_lines(result: RunResult, width: int) -> Iterator[str]:
    verdict = result.verdict
    if verdict is not None:
        for sentence in filter(None, (verdict.cost, verdict.comparison, verdict.evidence)):
            yield from wrap(sentence, width)
        yield ""


def _cells(row: ArmResult) -> list[str]:
    measured = row.fidelity
    return [
        row.arm.name,
        f"{measured.kl_to_teacher:.4f}",
        f"{measured.top1_agreement:.1%}",
        f"{measured.perplexity:.3f}",
        format_bits(row),
        format_size(row),
    ]


def format_bits(row: ArmResult) -> str:
    """Return `4.25`; a dash where nothing was exported."""
    return "-" if row.bits_per_weight is None else f"{row.bits_per_weight:.4g}"


def describe_bits(row: ArmResult) -> str:
    """Return `linear 4.25, embedding 16`; empty where the row has no such numbers."""
    return ", ".join(f"{kind} {bits:.4g}" for kind, bits in (row.bits_by_kind or {}).items())


def format_size(row: ArmResult) -> str:
    """Return `113.2 MB`; a dash where nothing was exported."""
    return "-" if row.size_bytes is None else f"{row.size_bytes / 1e6:,.1f} MB"


def _notes(result: RunResult, run_dir: Path) -> Iterator[str]:
    config = load_run_config(run_dir / CONFIG)
    yield (
        f"{result.teacher.fidelity.num_tokens:,} held-out tokens; KL in nats a token, over the full vocabulary; "
        "same top-1: the likeliest token is the teacher's"
    )
    yield from _text_lines(result)
    if bits := describe_bits(result.student):
        yield f"bits      {bits}; bits/weight is over the whole model"
    for line in wrap(ending_of(config, result), 110):
        yield f"ending    {line}"
    yield f"time      {duration(result.seconds['total'])}{_parts(result)}"
    roles = "  ".join(f"{role} {value:,.0f} s" for role, value in result.seconds.items() if role != "total")
    if roles and result.command == "distill":
        yield f"work      {roles}"
    if found := _bottleneck(result, config, run_dir):
        yield f"limit     {found.sentence}"
    if isinstance(result, DistillResult) and result.max_staleness is not None:
        yield f"staleness {result.max_staleness} at most, chosen by rollout.max_staleness=auto"
    if result.startup:
        yield from _startup_lines(result.startup)
    if isinstance(result, DistillResult) and result.deaths:
        deaths = ", ".join(f"{worker} {count}" for worker, count in result.deaths.items())
        yield f"deaths    {sum(result.deaths.values())} survived: {deaths}"
    local = run_dir / EXPORT
    export = str(short_path(local)) if local.is_dir() else result.export
    if export:
        yield f"export    {export}"
    yield f"metrics   {short_path(run_dir / METRICS)}"
    yield f"result    {short_path(run_dir / RESULT)}"
    if config.storage:
        yield f"storage   {redact(config.storage)}/{config.name}"
    if (run_dir / REPORT).exists():
        yield f"report    {short_path(run_dir / REPORT)}"
    if export:
        yield _serving_line(config.quant.format, export if local.is_dir() else "A_COPY_OF_THE_EXPORT")


def _bottleneck(result: RunResult, config: Config, run_dir: Path) -> Bottleneck | None:
    cluster = result.environment.cluster if result.environment else None
    if cluster is None or result.command != "distill" or not (run_dir / METRICS).exists():
        return None
    steps = [event for event in read_events(run_dir) if isinstance(event, StepEvent)]
    return find_bottleneck(steps, config, cluster.gpus)


def _parts(result: RunResult) -> str:
    """Format ` = start 120 s + learner 300 s`; empty in runs from before it was kept."""
    return f" = {' + '.join(f'{name} {value:,.0f} s' for name, value in result.parts.items())}" if result.parts else ""


def _text_lines(result: RunResult) -> Iterator[str]:
    """Yield `text      perplexity 18.471 teacher, ... over 16,320 tokens of eval.text`; nothing without one."""
    shown = [
        f"{row.arm.name} {row.fidelity.text_perplexity:.3f}"
        for row in result.rows
        if row.fidelity.text_perplexity is not None
    ]
    if shown:
        number = result.student.fidelity.num_text_tokens or 0
        yield f"text      perplexity over {number:,} tokens of eval.text: {', '.join(shown)}"


def _startup_lines(startup: Startup) -> Iterator[str]:
    """Yield when the first step was done, and how long the end took, with what took longest; much of it overlapped."""
    if startup.first_step is None or startup.last_step is None:
        return
    yield f"start     first step after {startup.first_step:.0f} s{_longest(startup.before)}"
    yield f"end       {startup.end - startup.last_step:.0f} s after the last step{_longest(startup.after)}"


def _longest(spans: Sequence[Span], count: int = 3) -> str:
    """Format `: rollout-0 import vllm 10 s, learner calibrate 8 s`; empty where nothing took half a second."""
    shown = [f"{s.role} {s.name} {s.seconds:.0f} s" for s in list_innermost(spans)[:count] if s.seconds >= 0.5]
    return f": {', '.join(shown)}" if shown else ""


def _serving_line(quant_format: str, export: str) -> str:
    verb, command, remark = how_to_run(quant_format, export)
    return f"{verb:8}  {command}{f'   ({remark})' if remark else ''}"


def how_to_run(quant_format: str, export: Path | str, proc: Path = Path("/proc")) -> tuple[str, str, str]:
    """Return what one does with an export, the command for it, and what to know of that.

    `proc`: where the system tells what this machine has.
    """
    if quant_format in ("nf4", "fp4"):  # bitsandbytes' formats are not in vLLM
        return "load it", f'AutoModelForCausalLM.from_pretrained("{export}")', "transformers, with bitsandbytes"
    remark = "on a GPU" if quant_format == "nvfp4" else "on a GPU, or a CPU with AVX-512" if _lacks_both(proc) else ""
    return "serve it", f"vllm serve {export}", remark


def _lacks_both(proc: Path) -> bool:
    """Return whether this machine has no GPU, and a CPU of x86 for which vLLM has no kernel for 4-bit codes."""
    try:
        flags = set((proc / "cpuinfo").read_text().split())
    except OSError:  # another system than Linux
        return False
    return "avx2" in flags and "avx512f" not in flags and not (proc / "driver" / "nvidia").exists()


def short_path(path: Path) -> Path:
    """Return `path` from here, if it lies here."""
    try:
        here = Path.cwd()
    except FileNotFoundError:  # the copy that Ray made for a job, and may remove as soon as no actor of it is left
        return path
    return path.relative_to(here) if path.is_relative_to(here) else path
