"""report.html in a run's directory, from what lies there, and what lies beside it."""

from __future__ import annotations

import datetime
from pathlib import Path

from rayqd.config import Config
from rayqd.files import write_text
from rayqd.report.beside import list_figures, result_markdown
from rayqd.report.run import Run, run_page
from rayqd.runs.benchmarks import read_benchmarks
from rayqd.runs.config_file import load_run_config
from rayqd.runs.continuations import read_continuations
from rayqd.runs.data_file import read_data
from rayqd.runs.ending import ending_of
from rayqd.runs.environment import Environment
from rayqd.runs.metrics_file import read_events
from rayqd.runs.paths import CONFIG, FIGURES, REPORT, RESULT, RESULT_TABLE
from rayqd.runs.result_file import Command, RunResult, read_result


class Report:
    """The page of a run that goes on, written as often as there is news: that takes milliseconds."""

    def __init__(self, config: Config, command: Command, environment: Environment) -> None:
        self._config = config
        self._command: Command = command
        self._environment = environment

    def write(self, result: RunResult | None = None) -> None:
        """Put the page in place of the one before; without a `result` it says how far the run is."""
        directory = self._config.run_dir
        page = run_page(
            Run(
                config=self._config,
                command=self._command,
                events=read_events(directory),
                result=result,
                environment=self._environment,
                made=self._made(result),
                benchmarks=read_benchmarks(directory),
                data=read_data(directory),
                continuations=read_continuations(directory),
            )
        )
        write_text(directory / REPORT, page)
        if result:
            self._write_beside(page, result)

    def _write_beside(self, page: str, result: RunResult) -> None:
        """Write the table as Markdown, and each figure as a file of its own."""
        directory = self._config.run_dir
        write_text(directory / RESULT_TABLE, result_markdown(result, ending_of(self._config, result)))
        (directory / FIGURES).mkdir(exist_ok=True)
        for name, text in list_figures(page):
            write_text(directory / FIGURES / name, text)

    def _made(self, result: RunResult | None) -> datetime.datetime:
        """Return when the run ended, however late its page is written; of one that goes on, now."""
        if result is None:
            return datetime.datetime.now().astimezone()
        file = self._config.run_dir / RESULT
        finished = result.finished or (file.stat().st_mtime if file.exists() else None)
        return datetime.datetime.now().astimezone() if finished is None else _local_time(finished)


def _local_time(seconds: float) -> datetime.datetime:
    return datetime.datetime.fromtimestamp(seconds).astimezone()


def write_report(config: Config, result: RunResult) -> None:
    """Write the page of a run that has finished; not of one from before its environment was kept."""
    if result.environment:
        Report(config, result.command, result.environment).write(result)


def rewrite_report(run_dir: Path) -> None:
    """Write the page of a run that has finished anew, with what was found out since; does nothing where it has none."""
    config = load_run_config(run_dir / CONFIG)
    result = read_result(run_dir / RESULT)
    if config.run_dir == run_dir and result and (run_dir / REPORT).exists():
        write_report(config, result)
