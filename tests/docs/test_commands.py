"""What README.md and docs/*.md tell a reader to type.

Every rayqd command in a code block must be one that rayqd takes: the command and its flags exist, settings have values
that they can have, files named with @ are there. A file is there when it is in the repository, or when the page shows
it: a ```toml block whose first line is the comment `# mine.toml` is the file mine.toml.

Beyond that, a ```bash block is run, in the order of its page, where a reader would stand (`readers_directory`, below:
stand-ins for the model, the rows, the run and the settings that pages speak of). A block that cannot be run there says
why, in the line that opens it or in a comment that is its first line, with one of these phrases:

    ```bash needs a GPU          ```bash needs a cluster        ```bash needs a cloud
    ```bash needs a network      ```bash needs another program  ```bash minutes

Nothing of README.md is run: it tells of real models throughout.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pages import PAGES, ROOT, Block, blocks, check_command, rayqd_commands, settings_files

from rayqd.errors import ConfigError

LIMIT_SECONDS = 300  # of one block


def to_run(page: Path) -> list[Block]:
    return [block for block in blocks(page) if block.language == "bash" and not block.mark and page.name != "README.md"]


@pytest.fixture
def beside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], None]:
    """A function that goes where the files of the repository are, and those that a page shows."""

    def go(page: Path) -> None:
        for entry in ROOT.iterdir():
            (tmp_path / entry.name).symlink_to(entry)
        for name, text in settings_files(page).items():
            (tmp_path / name).write_text(text)
        monkeypatch.chdir(tmp_path)

    return go


@pytest.fixture(scope="session")
def readers_directory(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """Where a reader stands who has followed the README: every stand-in there is.

    path/to/model       a random model of two layers that takes 4096 tokens
    prompts.jsonl       160 rows
    cluster.yaml        the repository's
    configs/            the repository's; quickstart.toml, however, is of that model and those rows
    runs/quickstart     a finished run of it, although made by `rayqd quantize`
    """
    from rich.console import Console

    from rayqd.commands.quantize import quantize
    from rayqd.config import load_config

    directory = tmp_path_factory.mktemp("reader")
    model = directory / "path" / "to" / "model"
    shutil.copytree(tiny_model, model)
    settings = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(settings | {"max_position_embeddings": 4096}))
    rows = [
        {"prompt": f"Say {chr(97 + i % 26) * 5}!", "completion": f"{chr(97 + i % 26) * 9} {i}."} for i in range(300)
    ]
    (directory / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    shutil.copytree(ROOT / "configs", directory / "configs")
    shutil.copy(ROOT / "cluster.yaml", directory)
    (directory / "configs" / "quickstart.toml").write_text(QUICKSTART.format(directory=directory))
    config = load_config([f"@{directory}/configs/quickstart.toml", "--runs-dir", str(directory / "runs")])
    quantize(config, Console(file=io.StringIO()))
    return directory


QUICKSTART = """\
name = "quickstart"
model.name = "{directory}/path/to/model"
quant = {{ group_size = 64, calibration_tokens = 400 }}
data.source = "{directory}/prompts.jsonl"
eval.num_rows = 4
"""


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_is_one_that_rayqd_takes(page: Path, beside: Callable[[Path], None]) -> None:
    beside(page)
    wrong: list[str] = []
    for block in blocks(page):
        for words in rayqd_commands(block):
            try:
                check_command(words)
            except ConfigError as error:
                wrong.append(f"{block}: rayqd {' '.join(words)}: {error}")
    assert wrong == []


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if to_run(page)], ids=lambda page: page.name)
def test_what_carries_no_marker_runs(page: Path, readers_directory: Path, tmp_path: Path) -> None:
    directory = tmp_path / "reader"
    shutil.copytree(readers_directory, directory, symlinks=True)
    for name, text in settings_files(page).items():
        (directory / name).write_text(text)
    for block in to_run(page):
        done = run(block, directory, tmp_path / "bin")
        assert done.returncode == 0, f"{block}\n{block.text}\n{done.stdout}{done.stderr}"


def run(block: Block, directory: Path, programs: Path) -> Any:
    """The block in bash, which stops at the first command that fails."""
    programs.mkdir(exist_ok=True)
    (programs / "rayqd").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m rayqd "$@"\n')
    (programs / "python").write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    for program in programs.iterdir():
        program.chmod(0o755)
    environment = os.environ | {"PATH": f"{programs}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        ["bash", "-euo", "pipefail", "-c", block.text],
        cwd=directory, env=environment, capture_output=True, text=True, timeout=LIMIT_SECONDS,
    )  # fmt: skip


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_blocks_compile(page: Path) -> None:
    for block in blocks(page):
        if block.language == "python":
            compile(block.text, str(block), "exec")
