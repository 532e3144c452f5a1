"""`rayqd bench KIND`: runs it, prints a table, and writes the same numbers as JSON."""

from __future__ import annotations

import json
import platform
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from rayqd.bench.loss import bench_loss
from rayqd.bench.shapes import SHAPES
from rayqd.bench.step import ARMS, USUAL_ARMS, bench_step
from rayqd.bench.teacher import bench_teacher
from rayqd.config import Config
from rayqd.console.say import say
from rayqd.errors import ConfigError

BETAS = (0.0, 0.5, 1.0)
# Dense 16-bit peak of the tensor cores, from the vendor's data sheets.
_PEAK_FLOP_PER_SECOND = {"H100": 989e12, "H200": 989e12, "A100": 312e12}


def bench(kind: str, config: Config, switches: Mapping[str, str], console: Console | None = None) -> dict[str, Any]:
    """Measure step, loss or teacher; returns what it printed. Raises ConfigError for a switch that makes no sense."""
    console = console or Console()
    model = _model(kind, config, switches)
    sequences, length = _tokens(switches.get("tokens", "8x1024" if torch.cuda.is_available() else "2x256"))
    repeats = _positive("repeats", switches.get("repeats", "5"))
    about = {"kind": kind, "model": model, "device": _device(), "torch": torch.__version__, "dtype": config.model.dtype}
    about |= {"sequences": sequences, "length": length, "repeats": repeats}
    measured = {
        "step": partial(_step, arms=_arms(kind, switches)),
        "loss": partial(_loss, chunk_tokens=_chunk_tokens(kind, switches)),
        "teacher": _teacher,
    }
    rows = measured[kind](model, config, sequences, length, repeats)
    table = Table(title=f"{kind}: {model}, {sequences} x {length} tokens, {config.model.dtype}, {about['device']}")
    for i, name in enumerate(key for key in rows[0] if not key.startswith("_")):
        table.add_column(name, justify="left" if i == 0 else "right")
    for row in rows:
        table.add_row(*(_shown(value) for key, value in row.items() if not key.startswith("_")))
    console.print(table)
    if kind == "teacher":
        console.print("by beta: bias of the loss, and cosine of its gradient to the exact one", highlight=False)
    console.print(f"median of {repeats} after warm-up; slowest and fastest are in the JSON", highlight=False)
    result = about | {"rows": [{**row, **row["_timing"]} for row in rows]}
    for row in result["rows"]:
        del row["_timing"]
    if "json" in switches:
        Path(switches["json"]).write_text(json.dumps(result, indent=2) + "\n")
        say(console, f"written to {switches['json']}")
    return result


def _step(
    shape: str, config: Config, sequences: int, length: int, repeats: int, *, arms: Sequence[str]
) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for each in bench_step(shape, config, sequences=sequences, length=length, repeats=repeats, arms=arms):
        seconds = each.timing.seconds
        row: dict[str, Any] = {"arm": each.arm, "ms a step": 1e3 * seconds, "tokens/s": round(each.tokens_per_second)}
        if (peak := _peak()) is not None:
            row["FLOP use"] = f"{each.flop / seconds / peak:.0%}"
        if each.timing.peak_bytes is not None:
            row["peak GiB"] = each.timing.peak_bytes / 2**30
        row["to the first"] = seconds / rows[0]["_timing"]["seconds"] if rows else 1.0
        rows.append(row | {"_timing": asdict(each.timing)})
    return rows


def _loss(
    shape: str, config: Config, sequences: int, length: int, repeats: int, *, chunk_tokens: int | None
) -> list[dict[str, Any]]:
    model = SHAPES[shape]
    rows: list[dict[str, Any]] = []
    for each in bench_loss(
        num_tokens=sequences * length,
        vocab_size=model["vocab_size"],
        width=model["hidden_size"],
        dtype=config.model.dtype,
        betas=BETAS,
        repeats=repeats,
        chunk_tokens=chunk_tokens,
    ):
        row: dict[str, Any] = {"arm": each.arm, "ms": 1e3 * each.timing.seconds}
        if each.extra_bytes is not None:
            row["extra GiB"] = each.extra_bytes / 2**30
            row["GB/s"] = round(each.logit_bytes / 1e9 / each.timing.seconds) if each.logit_bytes else ""
        row["to products"] = each.timing.seconds / rows[0]["_timing"]["seconds"] if rows else 1.0
        rows.append(row | {"_timing": asdict(each.timing)})
    return rows


def _teacher(model: str, config: Config, sequences: int, length: int, repeats: int) -> list[dict[str, Any]]:
    del model  # the configuration names it
    rows: list[dict[str, Any]] = []
    exact: dict[float, float] = {}
    for each in bench_teacher(config, num_tokens=sequences * length, betas=BETAS, repeats=repeats):
        exact = exact or each.loss
        row: dict[str, Any] = {
            "payload": each.arm,
            "bytes/token": round(each.bytes_per_token),
            "tokens/s": round(each.num_tokens / each.timing.seconds),
        }
        for beta in BETAS:
            known = beta in each.loss
            bias = f"{each.loss[beta] / exact[beta] - 1:+.1%}  {each.cosine[beta]:.4f}" if known else ""
            row[f"beta {beta:g}"] = bias
        rows.append(row | {"_timing": asdict(each.timing) | {"loss": each.loss, "cosine": each.cosine}})
    return rows


def _model(kind: str, config: Config, switches: Mapping[str, str]) -> str:
    """What is measured: a shape with random weights, or the real model that answers as a teacher."""
    if kind == "teacher":
        if "shape" in switches:
            raise ConfigError("flag --shape: what a teacher leaves out is seen on a real one alone; give --model.name")
        return config.teacher_name
    shape = switches.get("shape", "smollm2-135m")
    if shape not in SHAPES:
        raise ConfigError(f"flag --shape={shape}: must be one of {', '.join(SHAPES)}")
    return shape


def _arms(kind: str, switches: Mapping[str, str]) -> Sequence[str]:
    if kind != "step" and "arms" in switches:
        raise ConfigError(f"flag --arms: only rayqd bench step has arms to choose from, not {kind}")
    arms = tuple(switches.get("arms", ",".join(USUAL_ARMS)).split(","))
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


def _device() -> str:
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"CPU, {torch.get_num_threads()} threads, {platform.machine()}"


def _peak() -> float | None:
    if not torch.cuda.is_available():
        return None
    name = torch.cuda.get_device_name()
    return next((peak for chip, peak in _PEAK_FLOP_PER_SECOND.items() if chip in name), None)


def _shown(value: object) -> str:
    if isinstance(value, float):
        return f"{value:,.1f}" if value >= 10 else f"{value:.2f}"
    return f"{value:,}" if isinstance(value, int) else str(value)
