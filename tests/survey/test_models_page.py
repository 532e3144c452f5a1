"""The table of architectures: rows in files, processes that end badly, the page."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from rayqd.errors import ConfigError
from rayqd.survey import child, processes
from rayqd.survey.page import make_page, summarize
from rayqd.survey.row import Row, Verdict

_ROWS = [
    Row(architecture="b", class_name="B", verdict=Verdict.REFUSED, words="no head | none"),
    Row(architecture="c", class_name="C", verdict=Verdict.EXACT, batching="padded", experts="4-bit", engine=False),
    Row(
        architecture="a",
        class_name="A",
        verdict=Verdict.EXACT,
        batching="packed",
        dense=["mlp.gate", "conv"],
        calibrations={"gptq": "exact", "awq": "AWQ cannot"},
        engine=True,
    ),
]


def test_a_row_comes_back_from_its_file(tmp_path: Path) -> None:
    for row in _ROWS:
        row.write(tmp_path / "row.json")
        assert Row.read(tmp_path / "row.json") == row


def test_the_page_has_what_is_exact_and_the_words_of_what_is_refused() -> None:
    page = make_page(_ROWS, "transformers 5")
    assert "3 architectures: 2 exact (1 packed, 1 padded), 1 refused. With transformers 5." in page
    assert "| `a` | A | packed |  |  | mlp.gate, conv |  | GPTQ | yes |\n| `c` | C | padded |" in page
    assert "| `b` | no head \\| none |" in page
    assert "## Wrong" not in page
    assert summarize([*_ROWS, Row(architecture="d", class_name="D", verdict=Verdict.FAILED)]).endswith(
        "1 refused, 1 failed."
    )


def test_an_unknown_architecture_has_the_nearest_name(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match='no causal architecture "lama"; did you mean llama'):
        list(processes.try_all(["lama"], tmp_path))


class _Process:
    """A process that runs at once, in a fork of this one."""

    def __init__(self, target: object, args: tuple[object, ...], daemon: bool) -> None:
        self._target, self._args = target, args
        self.exitcode: int | None = None

    def start(self) -> None:
        pid = os.fork()
        if pid == 0:
            self._target(*self._args)  # type: ignore[operator]
            os._exit(0)
        self.exitcode = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

    def join(self, timeout: float | None = None) -> None: ...

    def is_alive(self) -> bool:
        return False


def test_a_crash_is_a_row_and_a_kept_row_is_not_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes._CONTEXT, "Process", _Process)
    monkeypatch.setattr(child, "write_row", lambda *_: os.kill(os.getpid(), signal.SIGKILL))
    (row,) = processes.try_all(["llama"], tmp_path)
    assert (row.verdict, row.words) == (Verdict.FAILED, "the process ended with -9")

    def write(name: str, _: Path, file: Path) -> None:
        Row(architecture=name, class_name="", verdict=Verdict.EXACT).write(file)

    monkeypatch.setattr(child, "write_row", write)
    assert next(processes.try_all(["llama"], tmp_path)).verdict is Verdict.FAILED
    assert next(processes.try_all(["llama"], tmp_path, again=True)).verdict is Verdict.EXACT
