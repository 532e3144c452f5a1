"""A run's config.toml is what was written, by a version that wrote directories as this one does, or is refused."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from rayqd.errors import RayqdError, RunError
from rayqd.runs import config_file
from rayqd.runs.config_file import command_of, load_run_config, write_config
from rayqd.runs.directory import RunDirectory, describe_run_dir
from rayqd.runs.record import read_run

NUM_FLIPS = 150  # of some 4,000 bytes


@pytest.fixture
def written(tiny_config: Any, tmp_path: Path) -> tuple[Any, Path]:
    config = tiny_config()
    config.run_dir.mkdir(parents=True)
    write_config(config.run_dir / "config.toml", "distill", config)
    return config, config.run_dir / "config.toml"


def test_it_comes_back_as_it_was(written: tuple[Any, Path]) -> None:
    config, file = written
    assert load_run_config(file) == config
    assert command_of(file) == "distill"


def test_a_flipped_bit_anywhere_is_told_or_changes_nothing(written: tuple[Any, Path]) -> None:
    config, file = written
    whole = file.read_bytes()
    draw = random.Random(0)
    told: list[str] = []
    for place in draw.sample(range(len(whole)), NUM_FLIPS):
        flipped = bytearray(whole)
        flipped[place] ^= 1 << draw.randrange(8)
        file.write_bytes(flipped)
        try:
            assert load_run_config(file) == config
        except RayqdError as error:
            told.append(str(error))
        read_run(config.run_dir)
    assert len(told) > NUM_FLIPS * 0.9  # the rest is in the last line's first words
    assert not [text for text in told if "\n" in text]


def test_a_change_by_hand_is_refused_unless_the_last_line_goes(written: tuple[Any, Path]) -> None:
    config, file = written
    text = file.read_text().replace("num_rows = 4", "num_rows = 5")
    file.write_text(text)
    with pytest.raises(RunError, match=r"config.toml is not what rayqd wrote there: put it back, or remove its last"):
        RunDirectory(config)
    file.write_text("\n".join(text.splitlines()[:-1]) + "\n")
    assert load_run_config(file).eval.num_rows == 5


def test_a_directory_of_a_newer_version_says_which(written: tuple[Any, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    config, file = written
    with monkeypatch.context() as newer:
        newer.setattr(config_file, "FORM", 2)
        newer.setattr(config_file, "installed_version", lambda _: "9.1.0")
        write_config(file, "distill", config)
    pattern = r"was written by rayqd 9\.1\.0, whose run directories have form 2, and this is rayqd .* knows form 1"
    for look in (RunDirectory, describe_run_dir):
        with pytest.raises(RunError, match=pattern):
            look(config)
    assert "9.1.0" in read_run(config.run_dir).problem


def test_a_checkout_that_is_not_installed_writes_what_it_reads(
    written: tuple[Any, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    config, file = written
    monkeypatch.setattr(config_file, "installed_version", lambda _: None)
    write_config(file, "distill", config)
    assert load_run_config(file) == config
    file.write_text(file.read_text().replace("directories of form 1", "directories of form 2"))
    with pytest.raises(RunError, match=r"was written by rayqd uninstalled, whose run directories have form 2"):
        load_run_config(file)


def test_a_run_that_was_refused_before_its_first_step_leaves_nothing_of_ray_trains(tiny_config: Any) -> None:
    for begun in (False, True):
        run_dir = RunDirectory(tiny_config())
        (run_dir.path / "ray_train" / "tiny-1").mkdir(parents=True)
        if begun:
            (run_dir.path / "metrics.jsonl").touch()
        run_dir.close()
        assert (run_dir.path / "ray_train").exists() == begun
