"""Errors that the pages quote are ones that the code can raise: their text is in it, word for word."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest
from pages import PAGES, ROOT, blocks

PREFIX = "rayqd: error: "
LEAST_LETTERS = 6  # of text between the values; f"{path}: {what}" would match anything
ENVELOPES = (r"flag --\S+: (.*)", r'\S+:\d+: (.*); fix it or set data\.on_bad_row = "skip"')  # around another message


@cache
def messages() -> tuple[re.Pattern[str], ...]:
    """Every text in the code as a pattern, with anything where a value stands."""
    found: list[re.Pattern[str]] = []
    for file in (ROOT / "rayqd").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            parts = node.values if isinstance(node, ast.JoinedStr) else [node]
            texts = [part.value if isinstance(part, ast.Constant) else None for part in parts]
            known = "".join(text for text in texts if isinstance(text, str))
            if len(re.sub(r"\W", "", known)) >= LEAST_LETTERS:
                pattern = "".join(re.escape(text) if isinstance(text, str) else ".*" for text in texts)
                found.append(re.compile(pattern))
    return tuple(found)


def is_raised(error: str) -> bool:
    inner = next((match[1] for envelope in ENVELOPES if (match := re.fullmatch(envelope, error))), error)
    if inner != error and any(pattern.fullmatch(inner) for pattern in messages()):
        return True
    return not re.fullmatch(ENVELOPES[1], error) and any(pattern.fullmatch(error) for pattern in messages())


def quoted(page: Path) -> list[str]:
    lines = (line for block in blocks(page) for line in block.text.splitlines())
    return [line.removeprefix(PREFIX) for line in lines if line.startswith(PREFIX)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_quoted_errors_are_in_the_code(page: Path) -> None:
    assert [error for error in quoted(page) if not is_raised(error)] == []


def test_the_page_of_errors_quotes_some() -> None:
    assert len(quoted(ROOT / "docs" / "troubleshooting.md")) > 20


@pytest.mark.parametrize(
    ("error", "raised"),
    [
        ("model directory here has no config.json; it is not a model, or not all of one", True),
        ("model directory here has no config.json; it is no model", False),
        ("here: something is wrong", False),
        ("flag --learner.lr=0: something is wrong", False),
        ('rows.jsonl:1: something is wrong; fix it or set data.on_bad_row = "skip"', False),
    ],
)
def test_a_text_that_the_code_does_not_have_is_found_out(error: str, raised: bool) -> None:
    assert is_raised(error) == raised
