"""What `rayqd export` makes, replaces and refuses, before anything is verified."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rayqd.errors import ConfigError, RunError, StorageError
from tests.export.trained_run import run

pytestmark = pytest.mark.usefixtures("without_vllm")


def test_existing_export_stays_unless_overwritten(make_run: Any) -> None:
    run_dir, config = make_run("int4")
    run(run_dir, config)
    before = (run_dir / "export" / "model.safetensors").stat().st_ino
    with pytest.raises(StorageError, match="export exists already; add --overwrite"):
        run(run_dir, config)
    assert (run_dir / "export" / "model.safetensors").stat().st_ino == before
    assert run(run_dir, config, overwrite=True)[0] == 0
    assert run(run_dir, config, out=run_dir / "elsewhere")[0] == 0
    assert (run_dir / "elsewhere" / "model.safetensors").is_file()


def test_directory_that_is_no_export_is_never_replaced(make_run: Any, tmp_path: Path) -> None:
    run_dir, config = make_run("int4")
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.txt").write_text("years of work")
    with pytest.raises(StorageError, match="home is there and is no export, so it stays"):
        run(run_dir, config, out=tmp_path / "home", overwrite=True)
    assert (tmp_path / "home" / "thesis.txt").read_text() == "years of work"


def test_moved_run_is_found_where_it_lies(make_run: Any, tmp_path: Path) -> None:
    run_dir, config = make_run("int4")
    moved = run_dir.rename(tmp_path / "moved")
    assert run(moved, config)[0] == 0
    assert (moved / "export" / "config.json").is_file()


@pytest.mark.parametrize(
    ("form", "kind_name", "message"),
    [
        ("int4", "ggfu", "flag --as=ggfu: must be one of .*; did you mean gguf"),
        ("int4", "bitsandbytes", "bitsandbytes holds nf4 and fp4, and this run is int4: use --as compressed-tensors"),
        ("nf4", "gguf", "GGUF Q4_0 holds int4 in groups of 32 .*, not nf4"),
    ],
)
def test_kind_that_does_not_fit_is_one_clear_line(make_run: Any, form: str, kind_name: str, message: str) -> None:
    run_dir, config = make_run(form)
    with pytest.raises(ConfigError, match=message):
        run(run_dir, config, kind_name=kind_name)
    assert not (run_dir / "export-gguf").exists()


def test_settings_that_would_make_it_another_model_are_refused(make_run: Any) -> None:
    run_dir, config = make_run("int4")
    other = config.model_copy(update={"seed": 7, "eval": config.eval.model_copy(update={"num_rows": 2})})
    with pytest.raises(ConfigError, match=r"takes the run as it is, and this would change it: seed: 42 -> 7$"):
        run(run_dir, other)


def test_run_that_never_came_to_a_checkpoint_is_an_error(make_run: Any, tmp_path: Path) -> None:
    run_dir, config = make_run("int4", checkpoint=False)
    with pytest.raises(RunError, match="has neither a checkpoint nor an export yet"):
        run(run_dir, config)
    with pytest.raises(ConfigError, match=r"is no run's directory: it has no config\.toml"):
        run(tmp_path, config)
