"""The table at the end of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from rayqd.config import load_config
from rayqd.console.progress import duration
from rayqd.console.say import say
from rayqd.runs.storage.folder import shown


def print_result(
    console: Console,
    result: dict[str, Any],
    run_dir: Path,
    title: str,
) -> None:
    """Rows by arm, seconds by role, where everything lies, and who can run it."""
    table = Table(title=f"{result['name']}: {title}", title_justify="left")
    for heading in ("", "KL to\nteacher", "same\ntop-1", "perplexity", "bits/\nweight", "size"):  # 80 columns
        table.add_column(heading, justify="left" if not heading else "right", no_wrap=True)
    for row in result["rows"]:
        table.add_row(
            row["arm"],
            f"{row['kl_to_teacher']:.4f}",
            f"{row['top1_agreement']:.1%}",
            f"{row['perplexity']:.3f}",
            f"{row['bits_per_weight']:g}",
            f"{row['size_bytes'] / 1e6:,.1f} MB",
        )
    console.print()
    console.print(table)
    seconds = "  ".join(f"{role} {value:,.0f} s" for role, value in result["seconds"].items())
    config = load_config([f"@{run_dir / 'config.toml'}"])
    here = run_dir / "export"
    export = str(short_path(here)) if here.is_dir() else result["export"]
    lines = [
        f"{result['rows'][0]['num_tokens']:,} held-out tokens; KL in nats a token, over the full vocabulary; "
        "same top-1: the likeliest token is the teacher's",
        f"time      {duration(result['seconds']['total'])}  ({seconds})",
        f"export    {export}",
        f"metrics   {short_path(run_dir / 'metrics.jsonl')}",
        f"result    {short_path(run_dir / 'result.json')}",
        *([f"storage   {shown(config.storage)}/{config.name}"] if config.storage else []),
        *([f"report    {short_path(report)}"] if (report := run_dir / "report.html").exists() else []),
        _who_runs_it(config.quant.format, export if here.is_dir() else "A_COPY_OF_THE_EXPORT"),
    ]
    for line in lines:
        say(console, line)


def _who_runs_it(quant_format: str, export: str) -> str:
    verb, command, remark = how_to_run(quant_format, export)
    return f"{verb:8}  {command}{f'   ({remark})' if remark else ''}"


def how_to_run(quant_format: str, export: Path | str) -> tuple[str, str, str]:
    """What one does with an export, the command for it, and what to know of that."""
    if quant_format in ("nf4", "fp4"):  # bitsandbytes' formats are not in vLLM
        return "load it", f'AutoModelForCausalLM.from_pretrained("{export}")', "transformers, with bitsandbytes"
    return "serve it", f"vllm serve {export}", "on a GPU" if quant_format == "nvfp4" else ""


def short_path(path: Path) -> Path:
    """`path` from here, if it lies here."""
    try:
        here = Path.cwd()
    except FileNotFoundError:  # the copy that Ray made for a job, and may remove as soon as no actor of it is left
        return path
    return path.relative_to(here) if path.is_relative_to(here) else path
