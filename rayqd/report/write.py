"""report.html in a run's directory, from what lies there."""

from __future__ import annotations

import datetime
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rayqd.config import Config
from rayqd.errors import StorageError
from rayqd.report.run import Run, run_page

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
                events=_rows(directory / "metrics.jsonl"),
                result=result,
                environment=self._environment,
                made=datetime.datetime.now().astimezone(),
            )
        )
        aside = directory / f".{REPORT}.partial"
        try:
            aside.write_text(page, encoding="utf-8")
            os.replace(aside, directory / REPORT)
        except OSError as error:
            raise StorageError(f"{directory / REPORT} could not be written: {error.strerror}") from error
        return directory / REPORT


def _rows(metrics: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in metrics.read_text().splitlines()] if metrics.exists() else []
