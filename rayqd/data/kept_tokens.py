"""The tokens of a source's rows, kept on disk for the next run that reads the same rows in the same way.

An entry's name is the digest of all that its tokens follow from: what the source holds (not its time or size alone),
the order, how many rows are needed and which are held out, the settings, tokenizer, chat template, and this package's
own code. So nothing that has changed ever finds it. It holds the examples, and what was left out of them, so that the
next run says the same as the first. It is read only where its checksums agree. Rows that go through the user's own code
are not kept: nobody can tell what that follows from.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Callable, Collection
from contextlib import closing
from dataclasses import asdict, replace
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from rayqd.checksums import digest, find_damage, from_checked_json, seal, to_checked_json
from rayqd.config.sections import DataConfig
from rayqd.data.chat_settings import ChatSettings
from rayqd.data.example_set import ExampleSet
from rayqd.data.left_out import LeftOut, LeftOutRow, Reason
from rayqd.data.packed_writer import PackedWriter, map_packed
from rayqd.data.sources import Rows
from rayqd.files import replace_directory

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MIN_ROWS = 4096  # below which tokenizing is as quick as looking whether it is needed
MAX_BYTES = 16 << 30  # of all entries; those that were not used for longest go first
_ABOUT = "about.json"
_DATE = "strftime_now"  # by which a template asks for the date


def entry_for(
    tokenizer: PreTrainedTokenizerBase,
    rows: Rows,
    order: NDArray[np.int64],
    data: DataConfig,
    chat: ChatSettings,
    *,
    needs: tuple[int, int],
    heldout: Collection[int],
) -> Path | None:
    """Return the directory in which the examples are kept, or would be; None where they are not to be.

    `needs`: how many examples, after how many that are held out. `heldout`: keys of rows that are not taken.
    """
    from rayqd.model.source import cache_dir

    source, of_tokenizer = rows.identity(), _identify(tokenizer)
    if source is None or of_tokenizer is None:
        return None
    template = chat.template or json.dumps(tokenizer.chat_template)
    parts = [
        _identify_code(),
        rows.name,
        source,
        of_tokenizer,
        repr(chat if _DATE in template else replace(chat, date=None)),
        repr((data.max_length, data.min_room, data.on_bad_row, *needs)),
        repr(rows.parse),
        digest(np.ascontiguousarray(order).tobytes()),
        digest(np.sort(np.fromiter(heldout, dtype=np.uint64)).tobytes()),
    ]
    return cache_dir() / "tokens" / digest(json.dumps(parts).encode())


def read_or_write(
    find_entry: Callable[[], Path | None], largest_id: int, write: Callable[[PackedWriter], ExampleSet]
) -> ExampleSet:
    """Return what is kept in the entry, mapped into memory, or else what `write` makes, which is kept there then.

    No token is above `largest_id`. Where the disk fails, or the source changes meanwhile, `write` is called once more,
    into memory, and nothing is kept.
    """
    entry = find_entry()
    if entry is None:
        return write(PackedWriter())
    found, damage = _read(entry, largest_id)
    if found is not None:
        return found
    with contextlib.suppress(OSError, _SourceChangedError):
        with replace_directory(entry, concurrent=True) as partial, closing(PackedWriter(partial, largest_id)) as writer:
            about = write(writer)
            if find_entry() != entry:
                raise _SourceChangedError
            _finish(partial, about)
        _prune(entry.parent, MAX_BYTES)
        found, _ = _read(entry, largest_id)
    made = found or write(PackedWriter())
    if not damage:
        return made
    remark = f"the tokens that were kept of {made.source} are damaged ({damage}): they were made anew"
    return replace(made, remarks=(*made.remarks, remark))


class _SourceChangedError(Exception):
    """The source is no longer what it was when its entry was named."""


def _read(directory: Path, largest_id: int) -> tuple[ExampleSet | None, str]:
    """Return the examples, or None; and what is damaged, in a few words. An entry that is damaged is removed."""
    if not directory.is_dir():
        return None, ""
    damage = find_damage(directory)
    if damage is not None:
        shutil.rmtree(directory, ignore_errors=True)
        return None, damage
    about = cast("dict[str, Any]", from_checked_json((directory / _ABOUT).read_bytes(), may_lack=False))
    examples, keys = map_packed(directory, largest_id=largest_id)
    os.utime(directory / _ABOUT)  # it was used
    return (
        ExampleSet(
            examples=examples,
            keys=keys,
            source=about["source"],
            num_rows=about["num_rows"],
            left_out=tuple(_left_out(each) for each in about["left_out"]),
            remarks=tuple(about["remarks"]),
            shapes=tuple(about["shapes"]),
        ),
        "",
    )


def _finish(directory: Path, about: ExampleSet) -> None:
    """Write beside the examples, which are in `directory`, what else is known of them, and the checksums of all."""
    content = {
        "source": about.source,
        "num_rows": about.num_rows,
        "left_out": [asdict(each) for each in about.left_out],
        "remarks": about.remarks,
        "shapes": about.shapes,
    }
    (directory / _ABOUT).write_text(to_checked_json(content), encoding="utf-8")
    seal(directory)


def _prune(tokens: Path, max_bytes: int) -> None:
    """Remove the entries in `tokens` that were not used for longest, until the others have at most `max_bytes`."""
    entries = [
        (about.stat().st_mtime_ns, about.parent, sum(file.stat().st_size for file in about.parent.iterdir()))
        for about in tokens.glob(f"*/{_ABOUT}")
    ]
    total = 0
    for _, directory, size in sorted(entries, reverse=True):
        total += size
        if total > max_bytes:
            shutil.rmtree(directory, ignore_errors=True)


def largest_id_of(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the largest id of any token."""
    return max(cast("dict[str, int]", tokenizer.get_vocab()).values(), default=0)


def _left_out(content: dict[str, Any]) -> LeftOut:
    first = tuple(LeftOutRow(**row) for row in content["first"])
    return LeftOut(reason=Reason(content["reason"]), num_rows=content["num_rows"], first=first)


def _identify(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """Return the digest of all that a tokenizer's tokens follow from; None for one that is code."""
    if not tokenizer.is_fast:
        return None
    core = json.loads(cast(Any, tokenizer).backend_tokenizer.to_str())
    core.pop("truncation", None)  # change with every call
    core.pop("padding", None)
    parts = [
        type(tokenizer).__qualname__,
        core,
        tokenizer.chat_template,
        tokenizer.special_tokens_map,
        cast(Any, tokenizer).init_kwargs,
    ]
    return digest(json.dumps(parts, sort_keys=True, default=str).encode())


@lru_cache(maxsize=1)
def _identify_code() -> str:
    """Return the digest of what reads, renders and tokenizes: this package, and the versions of what it uses."""
    here = Path(__file__).parent
    code = [digest(file.read_bytes()) for file in sorted(here.rglob("*.py"))]
    used = [f"{name} {version(name)}" for name in ("transformers", "tokenizers", "jinja2", "datasets", "numpy")]
    return digest("\n".join([*code, *used]).encode())
