"""Links between the pages, and into the repository, lead somewhere."""

import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from urllib.parse import unquote

import pytest
from markdown_it import MarkdownIt
from markdown_it.token import Token
from pages import PAGES, ROOT

TO_COME = ("clusters.md", "jobs.md", "images/")  # may be missing for now


def links(page: Path) -> Iterator[str]:
    def walk(tokens: list[Token]) -> Iterator[str]:
        for token in tokens:
            target = token.attrGet("href") or token.attrGet("src")
            if target:
                yield str(target)
            yield from walk(token.children or [])

    yield from walk(MarkdownIt().enable("table").parse(page.read_text()))


def anchors(page: Path) -> set[str]:
    """Of its headings, as GitHub makes them: lower case, punctuation dropped, spaces to dashes."""
    tokens = MarkdownIt().parse(page.read_text())
    headings = [after.content for token, after in pairwise(tokens) if token.type == "heading_open"]
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    broken: list[str] = []
    for link in links(page):
        target, _, anchor = link.partition("#")
        file = (page.parent / target).resolve() if target else page
        if re.match(r"\w+:", link) or (target.startswith(TO_COME) and not file.exists()):
            continue
        inside = file.exists() and file.is_relative_to(ROOT)
        if not inside or (anchor and unquote(anchor) not in anchors(file)):
            broken.append(link)
    assert broken == []
