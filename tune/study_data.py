"""The study's data: GSM8K and WikiText-2 as conversations, so that a student can write either itself.

    python tune/study_data.py GSM8K.jsonl WIKITEXT.txt OUT_DIR

writes OUT_DIR/gsm8k.jsonl and OUT_DIR/wikitext.jsonl to train on, and OUT_DIR/heldout.jsonl, which has rows of both. A
conversation of WikiText asks for the next tokens of a passage.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rayqd.model.load import load_tokenizer
from rayqd.model.source import local_directory

HELDOUT_SHARE = 0.2  # of WikiText, its end
HELDOUT_CONVERSATIONS = 500  # of GSM8K, its last, as in the recipe study
MEASURED_ROWS = 80  # of each of the two
PROMPT_TOKENS = 64
COMPLETION_TOKENS = 160
ASKS = "Continue this text:\n\n"


def read_conversations(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a file of `messages`."""
    return [json.loads(line) for line in path.read_text().split("\n") if line]


def make_passages(text: str, tokenizer: Any) -> list[dict[str, Any]]:
    """Cut a text into passages, of which the beginning is asked with and the rest is the answer."""
    ids: list[int] = tokenizer(text, verbose=False)["input_ids"]
    length = PROMPT_TOKENS + COMPLETION_TOKENS
    rows: list[dict[str, Any]] = []
    for start in range(0, len(ids) - length + 1, length):
        middle = start + PROMPT_TOKENS
        beginning, rest = tokenizer.decode(ids[start:middle]), tokenizer.decode(ids[middle : start + length])
        asked, answer = (
            {"role": "user", "content": ASKS + beginning.strip()},
            {"role": "assistant", "content": rest.strip()},
        )
        rows.append({"messages": [asked, answer]})
    return rows


def write_rows(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Write rows of `data.source`, and say how many."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    print(f"{path}: {len(rows)} rows")


def main() -> None:
    """Read the command line, and write the three files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("gsm8k", type=Path)
    parser.add_argument("wikitext", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--model", default="smollm2-135m")
    options = parser.parse_args()

    chats = read_conversations(options.gsm8k)
    passages = make_passages(options.wikitext.read_text(), load_tokenizer(local_directory(options.model)))
    first_heldout = round(len(passages) * (1 - HELDOUT_SHARE))
    options.out.mkdir(parents=True, exist_ok=True)
    write_rows(options.out / "gsm8k.jsonl", chats[:-HELDOUT_CONVERSATIONS])
    write_rows(options.out / "wikitext.jsonl", passages[:first_heldout])
    measured = chats[-HELDOUT_CONVERSATIONS:][:MEASURED_ROWS] + passages[first_heldout:][:MEASURED_ROWS]
    write_rows(options.out / "heldout.jsonl", measured)


if __name__ == "__main__":
    main()
