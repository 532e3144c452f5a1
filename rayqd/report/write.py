"""report.html in a run's directory, from what lies there."""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from rayqd.config import Config, load_config
from rayqd.files import write_text
from rayqd.report.run import Run, run_page
from rayqd.runs.metrics_file import read_events

REPORT = "report.html"


class Report:
    """Written as often as there is news: a page takes milliseconds."""

    def __init__(self, config: Config, command: str, environment: Mapping[str, Any]) -> None:
        self._config = config
        self._command = command
        self._environment = environment

    def write(self, result: Mapping[str, Any] | None = None) -> Path:
        """The page, in place of the one before; without a `result` it says how far the run is."""
        directory = self._config.run_dir
        page = run_page(
            Run(
                config=self._config,
                command=self._command,
                events=read_events(directory),
                result=result,
                environment=self._environment,
                made=datetime.datetime.now().astimezone(),
                benchmarks=benchmarks_of_export(directory),
            )
        )
        write_text(directory / REPORT, page)
        return directory / REPORT


def write_again(run_dir: Path) -> None:
    """The page of a run that has ended, with what was found out since; does nothing where it has none."""
    config = load_config([f"@{run_dir / 'config.toml'}"])
    ended = run_dir / "result.json"
    if config.run_dir == run_dir and ended.exists() and (run_dir / REPORT).exists():
        result = json.loads(ended.read_text())
        Report(config, command_of(result), result["environment"]).write(result)


def command_of(result: Mapping[str, Any]) -> Literal["distill", "quantize"]:
    """Which command left that result."""
    return "quantize" if "method" in result else "distill"


def benchmarks_of_export(run_dir: Path) -> list[dict[str, Any]]:
    """The rows that `rayqd eval` found for the run's export, those of the newest look at it."""
    files = [run_dir / "eval" / f"{name}-benchmarks.json" for name in (run_dir.name, "export")]
    there = sorted((file for file in files if file.exists()), key=lambda file: file.stat().st_mtime)
    return json.loads(there[-1].read_text())["rows"] if there else []
