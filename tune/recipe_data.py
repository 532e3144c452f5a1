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
from typing import TYPE_CHECKING

from rayqd.model.load import load_tokenizer
from rayqd.model.source import local_directory

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

HELDOUT_CONVERSATIONS = 500
HELDOUT_SHARE = 0.2
TOKENS_PER_ROW = 512
OPEN_ROWS = 64


def read_conversations(path: Path, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Write each row's messages with the model's chat template."""
    rows = [json.loads(line) for line in path.read_text().split("\n") if line]
    return [str(tokenizer.apply_chat_template(row["messages"], tokenize=False)) for row in rows]


def pack_rows(texts: Iterable[str], tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Lay whole texts end to end; each goes into the fullest row that has room, among the newest few."""
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


def split_windows(text: str, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Cut a text into rows of TOKENS_PER_ROW tokens; a last, shorter one is left out."""
    ids = tokenizer(text, verbose=False)["input_ids"]
    starts = range(0, len(ids) - TOKENS_PER_ROW + 1, TOKENS_PER_ROW)
    return [str(tokenizer.decode(ids[start : start + TOKENS_PER_ROW])) for start in starts]


def write_rows(path: Path, rows: list[str]) -> None:
    """Write rows of `data.source`, and say how many."""
    path.write_text("".join(json.dumps({"text": row}) + "\n" for row in rows))
    print(f"{path}: {len(rows)} rows")


def main() -> None:
    """Read the command line, and write the three files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("gsm8k", type=Path)
    parser.add_argument("wikitext", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--wikitext-copies", type=int, default=1, help="times that each training window is written")
    options = parser.parse_args()

    tokenizer = load_tokenizer(local_directory(options.model))
    chats = read_conversations(options.gsm8k, tokenizer)
    pages = split_windows(options.wikitext.read_text(), tokenizer)
    first_heldout = round(len(pages) * (1 - HELDOUT_SHARE))
    options.out.mkdir(parents=True, exist_ok=True)
    training = pack_rows(chats[:-HELDOUT_CONVERSATIONS], tokenizer) + pages[:first_heldout] * options.wikitext_copies
    write_rows(options.out / "train.jsonl", training)
    write_rows(options.out / "gsm8k.jsonl", pack_rows(chats[-HELDOUT_CONVERSATIONS:], tokenizer))
    write_rows(options.out / "wikitext.jsonl", pages[first_heldout:])


if __name__ == "__main__":
    main()
