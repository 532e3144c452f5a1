"""`rayqd bench startup` runs the real command, and leaves nothing but its numbers."""

import io
import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from rayqd.commands.bench_startup import startup, startup_config
from rayqd.config.arguments import read_arguments
from rayqd.errors import RunError


def test_flags_change_the_small_run_and_a_file_takes_its_place(tmp_path: Path) -> None:
    changed = startup_config(read_arguments(["--learner.steps", "3"]))
    assert (changed.learner.steps, changed.model.name, changed.data.source) == (3, "smollm2-135m", "quickstart")
    file = tmp_path / "own.toml"
    file.write_text("learner.steps = 5\n")
    own = startup_config(read_arguments([f"@{file}", "--learner.batch_size", "2"]))
    assert (own.learner.steps, own.learner.batch_size) == (5, 2)
    assert "data" not in own.model_fields_set


@pytest.mark.slow
def test_a_run_that_fails_is_told_by_its_last_line(tiny_config: Any, tmp_path: Path) -> None:
    config = tiny_config(model={"name": str(tmp_path / "nowhere")})
    with pytest.raises(RunError, match=r"the cold run ended with exit code 1: rayqd: error: .*nowhere"):
        startup(config, None, Console(file=io.StringIO()))


@pytest.mark.slow
@pytest.mark.ray
def test_both_runs_are_timed_from_the_command_to_its_prompt(
    tiny_config: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    output = io.StringIO()
    config = tiny_config(distill={"lmbda": 0.0}, learner={"steps": 2})  # off-policy: without an engine
    cold, warm = startup(config, tmp_path / "numbers.json", Console(file=output, width=120))
    assert (cold.caches, warm.caches) == ("cold", "warm")
    for timing in (cold, warm):
        table = timing.startup
        assert table.first_step is not None
        assert table.last_step is not None
        assert 0 < table.first_step < table.last_step < table.end <= timing.seconds + 1
        names = {(span.role, span.name) for span in table.spans}
        assert {("driver", "start Ray"), ("learner", "first step"), ("teacher-0", "load model")} <= names
        starts = {(span.role, span.name): span.start for span in table.spans}
        ends = {(span.role, span.name): span.end for span in table.spans}
        assert ends["driver", "start Ray"] < starts["driver", "import transformers"]
        assert starts["teacher-0", "process"] < ends["driver", "read data"] < starts["teacher-0", "load model"]
        assert ends["driver", "read data"] < ends["learner", "wait for the driver's checks"]
    assert [run["caches"] for run in json.loads((tmp_path / "numbers.json").read_text())["runs"]] == ["cold", "warm"]
    assert "to the first step" in output.getvalue()
    assert not list(tmp_path.glob("rayqd-startup-*"))
