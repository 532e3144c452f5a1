"""What README.md and docs/*.md tell a reader to type.

Every rayqd command in a code block must be one that rayqd takes: the command and its flags exist, settings have values that
they can have, files named with @ are there. A file is there when it is in the repository, or when the page shows it: a
```toml block whose first line is the comment `# mine.toml` is mine.toml from there on.

Beyond that, a ```bash block is run, in the order of its page, in a directory where stand-ins lie (`a_readers_directory`, below:
a tiny model at path/to/model, rows in prompts.jsonl, a finished run at runs/quickstart, configs/). A block that cannot be run
there says why, in the line that opens it or in a comment that is its first line, in one of these words:

    ```bash needs a GPU          ```bash needs a cloud          ```bash needs a network          ```bash minutes

Nothing of README.md is run: it is written about real models, and `make quickstart` takes minutes.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pages import PAGES, ROOT, Block, blocks, check_command, rayqd_commands, settings_files

from rayqd.config.resolved import to_toml
from rayqd.errors import ConfigError

LIMIT_SECONDS = 240  # of one block


def by_name(page: Path) -> str:
    return page.name


@pytest.fixture
def beside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], None]:
    """A function that goes where the files of the repository and those that a page shows are."""

    def go(page: Path) -> None:
        for entry in ROOT.iterdir():
            (tmp_path / entry.name).symlink_to(entry)
        for name, text in settings_files(page).items():
            (tmp_path / name).write_text(text)
        monkeypatch.chdir(tmp_path)

    return go


@pytest.mark.parametrize("page", PAGES, ids=by_name)
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


@pytest.mark.parametrize("page", PAGES, ids=by_name)
def test_python_blocks_compile(page: Path) -> None:
    for block in blocks(page):
        if block.language == "python":
            compile(block.text, str(block), "exec")
