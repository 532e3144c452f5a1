"""`rayqd bench KIND`: runs it, prints a table, and writes the same numbers as JSON."""

from __future__ import annotations

import json
import platform
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from rich.console import Console

from rayqd.bench.loss import bench_loss
from rayqd.bench.report import BenchReport, BenchRow, Cell
from rayqd.bench.shapes import SHAPES
from rayqd.bench.step import ARMS, DEFAULT_ARMS, StepTiming, bench_step
from rayqd.bench.teacher import PayloadBenchmark, bench_teacher
from rayqd.config import Config
from rayqd.console.say import say
from rayqd.driver.dtype import with_concrete_dtype
from rayqd.errors import ConfigError

BETAS = (0.0, 0.5, 1.0)
# Dense 16-bit peak of the tensor cores, from the vendor's data sheets.
_PEAK_FLOP_PER_SECOND = {"H100": 989e12, "H200": 989e12, "A100": 312e12}


def bench(kind: str, config: Config, switches: Mapping[str, str], console: Console | None = None) -> BenchReport:
    """Measure step, loss or teacher, and print what was measured. Raises ConfigError for a switch out of place."""
    console = console or Console()
    config = with_concrete_dtype(config)
    model = _model(kind, config, switches)
    sequences, length = _tokens(switches.get("tokens", "8x1024" if torch.cuda.is_available() else "2x256"))
    repeats = _positive("repeats", switches.get("repeats", "5"))
    arms, chunk_tokens = _arms(kind, switches), _chunk_tokens(kind, switches)
    match kind:
        case "step":
            rows = _step_rows(model, config, sequences, length, repeats, arms)
        case "loss":
            rows = _loss_rows(model, config, sequences * length, repeats, chunk_tokens)
        case _:
            rows = _teacher_rows(config, sequences * length, repeats)
    report = BenchReport(
        kind=kind,
        model=model,
        device=_device_name(),
        torch=torch.__version__,
        dtype=config.model.dtype,
        sequences=sequences,
        length=length,
        repeats=repeats,
        rows=list(rows),
    )
    _print(report, console)
    if "json" in switches:
        Path(switches["json"]).write_text(json.dumps(report.to_json(), indent=2) + "\n")
        say(console, f"written to {switches['json']}")
    return report


def _print(report: BenchReport, console: Console) -> None:
    report.show(console)
    if report.kind == "teacher":
        console.print("by beta: bias of the loss, and cosine of its gradient to the exact one", highlight=False)
    console.print(f"median of {report.repeats} after warm-up; slowest and fastest are in the JSON", highlight=False)


def _step_rows(
    shape: str, config: Config, sequences: int, length: int, repeats: int, arms: Sequence[str]
) -> Iterator[BenchRow]:
    first: StepTiming | None = None
    for step in bench_step(shape, config, sequences=sequences, length=length, repeats=repeats, arms=arms):
        first = first or step
        seconds = step.timing.seconds
        cells: dict[str, Cell] = {
            "arm": step.arm,
            "ms a step": 1e3 * seconds,
            "tokens/s": round(step.tokens_per_second),
        }
        if (peak := _peak_flop_per_second()) is not None:
            cells["FLOP use"] = f"{step.flop / seconds / peak:.0%}"
        if step.timing.peak_bytes is not None:
            cells["peak GiB"] = step.timing.peak_bytes / 2**30
        cells["to the first"] = seconds / first.timing.seconds
        yield BenchRow(cells=cells, timing=step.timing)


def _loss_rows(
    shape: str, config: Config, num_tokens: int, repeats: int, chunk_tokens: int | None
) -> Iterator[BenchRow]:
    products_seconds = None
    for loss in bench_loss(
        num_tokens=num_tokens,
        vocab_size=SHAPES[shape].vocab_size,
        width=SHAPES[shape].hidden_size,
        dtype=config.model.dtype,
        betas=BETAS,
        repeats=repeats,
        chunk_tokens=chunk_tokens,
    ):
        seconds = loss.timing.seconds
        products_seconds = products_seconds or seconds
        cells: dict[str, Cell] = {"arm": loss.arm, "ms": 1e3 * seconds}
        if loss.extra_bytes is not None:
            cells["extra GiB"] = loss.extra_bytes / 2**30
            cells["GB/s"] = round(loss.logit_bytes / 1e9 / seconds) if loss.logit_bytes else ""
        cells["to products"] = seconds / products_seconds
        yield BenchRow(cells=cells, timing=loss.timing)


def _teacher_rows(config: Config, num_tokens: int, repeats: int) -> Iterator[BenchRow]:
    exact: dict[float, float] = {}
    for payload in bench_teacher(config, num_tokens=num_tokens, betas=BETAS, repeats=repeats):
        exact = exact or payload.loss
        cells: dict[str, Cell] = {
            "payload": payload.arm,
            "bytes/token": round(payload.bytes_per_token),
            "tokens/s": round(payload.num_tokens / payload.timing.seconds),
        }
        cells |= {f"beta {beta:g}": _bias(payload, exact, beta) for beta in BETAS}
        by_beta = {"loss": payload.loss, "cosine": payload.cosine}
        yield BenchRow(cells=cells, timing=payload.timing, by_beta=by_beta)


def _bias(payload: PayloadBenchmark, exact: Mapping[float, float], beta: float) -> str:
    if beta not in payload.loss:
        return ""
    return f"{payload.loss[beta] / exact[beta] - 1:+.1%}  {payload.cosine[beta]:.4f}"


def _model(kind: str, config: Config, switches: Mapping[str, str]) -> str:
    """Return what is measured: a shape with random weights, or the real model that is the teacher."""
    if kind == "teacher":
        if "shape" in switches:
            raise ConfigError("flag --shape: what a teacher leaves out is seen on a real one alone; give --model.name")
        return config.only_teacher.name
    shape = switches.get("shape", "smollm2-135m")
    if shape not in SHAPES:
        raise ConfigError(f"flag --shape={shape}: must be one of {', '.join(SHAPES)}")
    return shape


def _arms(kind: str, switches: Mapping[str, str]) -> Sequence[str]:
    if kind != "step" and "arms" in switches:
        raise ConfigError(f"flag --arms: only rayqd bench step has arms to choose from, not {kind}")
    arms = tuple(switches.get("arms", ",".join(DEFAULT_ARMS)).split(","))
    if unknown := [arm for arm in arms if arm not in ARMS]:
        raise ConfigError(f"flag --arms={','.join(arms)}: {unknown[0] or 'nothing'} is none of {', '.join(ARMS)}")
    return arms


def _tokens(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d+)x(\d+)", text)
    if match is None or int(match[1]) < 1 or int(match[2]) < 2:
        raise ConfigError(f"flag --tokens={text}: must be SEQUENCESxLENGTH, such as 8x1024, of 2 tokens or more each")
    return int(match[1]), int(match[2])


def _chunk_tokens(kind: str, switches: Mapping[str, str]) -> int | None:
    if "chunk-tokens" not in switches:
        return None
    if kind != "loss":
        raise ConfigError(f"flag --chunk-tokens: only rayqd bench loss has chunks, not rayqd bench {kind}")
    return _positive("chunk-tokens", switches["chunk-tokens"])


def _positive(name: str, text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise ConfigError(f"flag --{name}={text}: must be a whole number from 1")
    return int(text)


def _device_name() -> str:
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"CPU, {torch.get_num_threads()} threads, {platform.machine()}"


def _peak_flop_per_second() -> float | None:
    if not torch.cuda.is_available():
        return None
    name = torch.cuda.get_device_name()
    return next((peak for chip, peak in _PEAK_FLOP_PER_SECOND.items() if chip in name), None)
