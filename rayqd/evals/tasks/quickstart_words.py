"""The documents of quickstart_words: held-out answers of the quickstart data, each up to the last word of a sentence.

lm-eval loads this file by its path, from the task's YAML, and not as a part of the package.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from importlib.resources import files
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from datasets import Dataset

_SENTENCES_A_ROW = 4
_LAST_WORD = re.compile(r"(?<=[a-z,] )([a-z]{4,})\.(?=\s|$)")  # after another word, and no abbreviation


def documents(**_: object) -> dict[str, Dataset]:
    """Return the split `test`; lm-eval hands over the task's metadata, of which nothing is needed."""
    from datasets import Dataset

    return {"test": Dataset.from_list(list(_documents()))}


def _documents() -> Iterator[dict[str, str]]:
    """`context` ends before the space that begins `word`."""
    rows = (files("rayqd") / "data" / "quickstart" / "heldout.jsonl").read_text(encoding="utf-8").splitlines()
    for row in map(json.loads, rows):
        *_, question, completion = row["messages"]
        answer = completion["content"]
        for match in list(_LAST_WORD.finditer(answer))[:_SENTENCES_A_ROW]:
            context = f"Question: {question['content']}\nAnswer: {answer[: match.start()].rstrip()}"
            yield {"context": context, "word": match[1]}
