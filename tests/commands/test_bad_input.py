"""What a user can get wrong: one clear line, a non-zero exit, and nothing is started or lost."""

import json
import shutil
from pathlib import Path
from typing import Any

import psutil
import pytest

from rayqd.cli import main
from rayqd.config.resolved import to_toml


@pytest.fixture
def fails(tiny_config: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Any:
    """Runs `rayqd distill` on the tiny configuration with changes; returns the one line of the error.

    Dry, unless said otherwise: the checks are the same, and Ray takes its time.
    """

    def run(*flags: str, exit_code: int = 1, dry: bool = True, **sections: Any) -> str:
        file = tmp_path / "run.toml"
        file.write_text(to_toml(tiny_config(**sections)))
        assert main(["distill", f"@{file}", *flags, *(["--dry-run"] if dry else [])]) == exit_code
        out, err = capsys.readouterr()
        lines = [line for line in err.splitlines() if line.startswith("rayqd: ")]
        assert len(lines) == 1
        assert "Ray" not in out + err
        return lines[0].removeprefix("rayqd: error: ")

    return run


def test_a_group_size_that_does_not_fit_names_layer_width_and_what_would(fails: Any) -> None:
    line = fails("--quant.group_size", "96", exit_code=2)
    assert "96" in line
    assert "model.layers.0.self_attn.q_proj" in line
    assert "128" in line
    assert "64" in line


def test_a_model_that_is_not_there(fails: Any) -> None:
    assert fails("--model.name", "./nowhere") == "model directory nowhere does not exist"


def test_a_model_that_is_half_downloaded(fails: Any, tiny_model: Path, tmp_path: Path) -> None:
    half = tmp_path / "half"
    shutil.copytree(tiny_model, half)
    weights = half / "model.safetensors"
    whole = weights.stat().st_size
    weights.write_bytes(weights.read_bytes()[: whole // 2])
    line = fails("--model.name", str(half))
    assert line == f"weights {weights} have {whole // 2} bytes where {whole} are needed; download them again"


def test_a_shard_that_is_missing(fails: Any, tiny_model: Path, tmp_path: Path) -> None:
    half = tmp_path / "half"
    shutil.copytree(tiny_model, half)
    shards = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (half / "model.safetensors").rename(half / "model-00001-of-00002.safetensors")
    (half / "model.safetensors.index.json").write_text(json.dumps(shards))
    line = fails("--model.name", str(half))
    assert "model-00002-of-00002.safetensors are missing: the model is half downloaded" in line


def test_a_broken_row_names_file_and_line(fails: Any, tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "a", "completion": "b"}\n{"prompt": "a"\n')
    line = fails("--data.source", str(rows), exit_code=1)
    assert line.startswith(f"{rows}:2: ")
    assert 'data.on_bad_row = "skip"' in line


def test_rows_that_are_all_too_long_are_told_with_their_lengths(fails: Any, tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({"prompt": "x" * 600, "completion": "b"}) + "\n")
    line = fails("--data.source", str(rows))
    assert f"{rows} leaves no examples: of its 1 rows 0 are broken, 1 do not fit data.max_length=" in line
    assert "(tokens of a row: 513 to 1,024: 1 row); raise data.max_length or give other data" in line


def test_a_teacher_with_another_tokenizer(fails: Any, tiny_model: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(tiny_model, other)
    tokenizer = json.loads((other / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    (other / "tokenizer.json").write_text(json.dumps(tokenizer))
    line = fails("--teacher.name", str(other))
    assert "different tokenizers" in line
    assert "2 ids differ" in line


def test_a_directory_that_is_no_run_is_left_alone(fails: Any, tmp_path: Path) -> None:
    precious = tmp_path / "runs" / "tiny" / "thesis.txt"
    precious.parent.mkdir(parents=True)
    precious.write_text("words")
    line = fails()
    assert "is not empty and not a run's directory" in line
    assert precious.read_text() == "words"


def test_a_run_directory_of_another_configuration_says_what_differs(
    fails: Any, tiny_config: Any, tmp_path: Path
) -> None:
    run_dir = tmp_path / "runs" / "tiny"
    run_dir.mkdir(parents=True)
    (run_dir / "config.toml").write_text(to_toml(tiny_config(learner={"lr": 5e-4}, distill={"beta": 0.0})))
    (run_dir / "start").mkdir()  # it has begun
    line = fails()
    assert "distill.beta: 0.0 -> 0.5" in line
    assert "learner.lr: 0.0005 -> 0.001" in line


def test_no_room_on_the_disk_is_found_before_anything_starts(fails: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rayqd.driver.preflight.free_bytes", lambda path: 1000)
    assert "GiB free: make room, or set runs_dir" in fails()


def test_a_length_beyond_the_context(fails: Any) -> None:
    assert "data.max_length=1024 is above the 512 tokens" in fails("--data.max_length", "1024", exit_code=2)


@pytest.mark.slow
@pytest.mark.ray
def test_what_is_found_once_ray_has_started_leaves_no_process_and_nothing_that_has_begun(
    fails: Any, tmp_path: Path
) -> None:
    before = set(psutil.Process().children(recursive=True))
    assert "96 does not divide" in fails("--quant.group_size", "96", exit_code=2, dry=False)
    ending = set(psutil.Process().children(recursive=True)) - before
    assert psutil.wait_procs(ending, timeout=30)[1] == []
    left = {path.name for path in (tmp_path / "runs" / "tiny").iterdir()}
    assert left <= {
        ".lock",
        "config.toml",
        "ended.json",
        "lease.json",
        "logs",  # leads to what its processes said
        "ray_train",
    }  # what has not begun may be changed
    assert "another configuration" not in fails("--data.max_length", "1024", exit_code=2, dry=False)
