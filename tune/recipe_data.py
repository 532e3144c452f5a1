"""The recipe study's data: GSM8K and WikiText-2 as rows of plain text of up to 512 tokens, every token trained.

    python tune/recipe_data.py GSM8K.jsonl WIKITEXT.txt OUT_DIR [--wikitext-copies N]

writes OUT_DIR/train.jsonl, and OUT_DIR/gsm8k.jsonl (the last 500 rows) and OUT_DIR/wikitext.jsonl (the last fifth) to
measure on. GSM8K's conversations are written with the model's chat template and laid end to end.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rayqd.model.load import load_tokenizer
from rayqd.model.source import local_directory

HELDOUT_CONVERSATIONS = 500
HELDOUT_SHARE = 0.2
TOKENS_PER_ROW = 512
OPEN_ROWS = 64


def conversations(path: Path, tokenizer: Any) -> list[str]:
    rows = [json.loads(line) for line in path.read_text().split("\n") if line]
    return [tokenizer.apply_chat_template(row["messages"], tokenize=False) for row in rows]


def joined(texts: Iterable[str], tokenizer: Any) -> list[str]:
    """Whole texts end to end; each goes into the fullest row that has room, among the newest few."""
    rows: list[str] = []
    room: list[int] = []
    for text in texts:
        num_tokens = len(tokenizer(text)["input_ids"])
        fitting = [i for i in range(max(0, len(rows) - OPEN_ROWS), len(rows)) if room[i] >= num_tokens]
        if not fitting:
            rows.append("")
            room.append(TOKENS_PER_ROW)
            fitting = [len(rows) - 1]
        fullest = min(fitting, key=room.__getitem__)
        rows[fullest] += text
        room[fullest] -= num_tokens
    return rows


def windows(text: str, tokenizer: Any) -> list[str]:
    """Consecutive windows; a last, shorter one is left out."""
    ids = tokenizer(text, verbose=False)["input_ids"]
    starts = range(0, len(ids) - TOKENS_PER_ROW + 1, TOKENS_PER_ROW)
    return [tokenizer.decode(ids[start : start + TOKENS_PER_ROW]) for start in starts]


def write(path: Path, rows: list[str]) -> None:
    path.write_text("".join(json.dumps({"text": row}) + "\n" for row in rows))
    print(f"{path}: {len(rows)} rows")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("gsm8k", type=Path)
    parser.add_argument("wikitext", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--wikitext-copies", type=int, default=1, help="times that each training window is written")
    options = parser.parse_args()

    tokenizer = load_tokenizer(local_directory(options.model))
    chats = conversations(options.gsm8k, tokenizer)
    pages = windows(options.wikitext.read_text(), tokenizer)
    first_heldout = round(len(pages) * (1 - HELDOUT_SHARE))
    options.out.mkdir(parents=True, exist_ok=True)
    training = joined(chats[:-HELDOUT_CONVERSATIONS], tokenizer) + pages[:first_heldout] * options.wikitext_copies
    write(options.out / "train.jsonl", training)
    write(options.out / "gsm8k.jsonl", joined(chats[-HELDOUT_CONVERSATIONS:], tokenizer))
    write(options.out / "wikitext.jsonl", pages[first_heldout:])


if __name__ == "__main__":
    main()
