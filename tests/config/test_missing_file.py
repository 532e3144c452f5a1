"""A file that is not there is answered with the one that was meant."""

from pathlib import Path

import pytest

from rayqd.config.missing import describe_missing


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("configs/quickstart.toml", "configs/gpu.toml", "runs/quickstart/config.toml", ".git/gpu.toml"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("path", "meant"),
    [
        ("config/quickstart.toml", "configs/quickstart.toml"),
        ("config/quikstart.toml", "configs/quickstart.toml"),
        ("configs/quickstart", "configs/quickstart.toml"),
        ("quickstart.toml", "configs/quickstart.toml"),
        ("quickstart", "configs/quickstart.toml"),
        ("gpu.toml", "configs/gpu.toml"),
    ],
)
def test_the_file_that_was_meant(path: str, meant: str) -> None:
    assert describe_missing(Path(path), ".toml") == f"{path}: does not exist; did you mean {meant}?"


def test_a_run_is_found_in_its_folder() -> None:
    assert describe_missing(Path("quickstart")) == "quickstart: does not exist; did you mean runs/quickstart?"


def test_nothing_like_it() -> None:
    assert describe_missing(Path("zzz/a.toml"), ".toml") == "zzz/a.toml: does not exist, nor does the folder zzz"
    assert describe_missing(Path("configs/zzz"), ".toml") == (
        "configs/zzz: does not exist; there are configs/gpu.toml, configs/quickstart.toml"
    )
