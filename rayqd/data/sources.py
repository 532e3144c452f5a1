"""Rows of conversations, from a file, from the hub, or from the set that ships with rayqd.

A row is {"messages": [{"role", "content"}, ...]} that ends with the assistant's answer, or {"prompt", "completion"}
(also {"prompt", "response"}), or {"text"}, all of which is trained on. "finish_reason": "length" beside them says that
the answer was cut, and has no end; other keys are ignored. A row that is none of these is an error that names its
place, or is skipped and counted. Who wants prompts alone reads rows with `parse_prompt`, which needs no answers.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal, cast

from rayqd.errors import DataError

ROLES = ("system", "user", "assistant", "tool")
TEXT = "text"  # stands for a role where the row is no conversation
QUICKSTART_FILES = {"train": "train.jsonl", "test": "heldout.jsonl"}
MAX_REASONS = 5

Message = dict[str, str]  # "role", one of ROLES, and "content"; of an answer that was cut also FINISH_REASON: CUT
FINISH_REASON, CUT = "finish_reason", "length"  # as every serving API calls it
OnBadRow = Literal["auto", "error", "skip"]
Parse = Callable[[object], list[Message]]


class Rows:
    """Conversations by position, each read and checked when it is asked for."""

    def __init__(
        self,
        name: str,
        length: int,
        fetch: Callable[[int], object],
        where: Callable[[int], str],
        on_bad_row: OnBadRow,
        parse: Parse,
    ) -> None:
        self.name = name
        self.reasons: list[str] = []
        """Place and fault of the first few rows skipped."""
        self._length = length
        self._fetch = fetch
        self._where = where
        self._on_bad_row = on_bad_row
        self._parse = parse
        self._skipped: set[int] = set()

    def __len__(self) -> int:
        return self._length

    @property
    def num_skipped(self) -> int:
        """Broken rows met so far; one met twice counts once."""
        return len(self._skipped)

    def row(self, index: int) -> list[Message] | None:
        """The conversation at `index`; None if it is broken and broken rows are skipped. Raises DataError if not."""
        if index in self._skipped:
            return None
        try:
            return self._parse(self._fetch(index))
        except DataError as error:
            self.reject(index, str(error))
            return None

    def reject(self, index: int, what: str) -> None:
        """Declares the row at `index` broken: counts it, or raises DataError with its place and what to do."""
        if self._on_bad_row != "skip":
            raise DataError(f'{self._where(index)}: {what}; fix it or set data.on_bad_row = "skip"')
        if len(self.reasons) < MAX_REASONS:
            self.reasons.append(f"{self._where(index)}: {what}")
        self._skipped.add(index)


def parse_row(row: object) -> list[Message]:
    """The row's conversation, or one message of role TEXT.

    Raises DataError that says what is wrong with the row, without its place.
    """
    fields = _fields(row)
    messages = fields.get("messages")
    if messages is None and fields.get("prompt") is None and fields.get("text") is not None:
        return [{"role": TEXT, "content": _text(fields["text"], "text")}]
    parsed = _parse_messages(_as_messages(fields) if messages is None else messages)
    if parsed[-1]["role"] != "assistant":
        raise DataError(f"the last message must be the assistant's, got {parsed[-1]['role']!r}")
    if len(parsed) == 1:
        raise DataError("there is an answer but nothing before it to answer")
    if fields.get(FINISH_REASON) == CUT:
        parsed[-1][FINISH_REASON] = CUT
    return parsed


def parse_prompt(row: object) -> list[Message]:
    """What the row asks: its conversation up to the last answer, whether there is one or not.

    Raises DataError as `parse_row` does.
    """
    fields = _fields(row)
    messages: object = fields.get("messages")
    if messages is None and fields.get("prompt") is None:
        raise DataError(f"there is nothing to answer: neither messages nor prompt, got {_keys(fields)}")
    if messages is None:
        return [{"role": "user", "content": _text(fields["prompt"], "prompt")}]
    if isinstance(messages, list) and messages and _is_answer(cast(list[object], messages)[-1]):
        messages = cast(list[object], messages)[:-1]
        if not messages:
            raise DataError("there is an answer but nothing before it to answer")
    return _parse_messages(messages)


def read_rows(source: str, split: str, *, on_bad_row: OnBadRow, parse: Parse = parse_row) -> Rows:
    """Rows of "quickstart", of a .jsonl file, or of a data set on the hub.

    A file is checked whole before this returns, a hub set row by row as it is read; `split` means nothing to a file.
    With `on_bad_row` auto a broken row is an error in a file, and skipped in a hub set, which its user cannot mend.
    Raises DataError for a source that is missing or cannot be reached, and for a broken row unless those are skipped.
    """
    if source == "quickstart":
        return _read_jsonl(_quickstart_path(split), on_bad_row, parse)
    path = Path(source).expanduser()
    is_no_id = source.startswith((".", "/", "~")) and not path.is_dir()
    if path.is_file() or path.suffix in (".jsonl", ".json") or is_no_id:
        return _read_jsonl(path, on_bad_row, parse)
    return _read_hub(source, split, "skip" if on_bad_row == "auto" else on_bad_row, parse)


def _fields(row: object) -> dict[str, Any]:
    if not isinstance(row, dict):
        raise DataError(f"a row must be an object, got {_kind(row)}")
    return cast(dict[str, Any], row)


def _keys(fields: dict[str, Any]) -> str:
    return f"the keys {', '.join(fields)}" if fields else "no keys"


def _is_answer(message: object) -> bool:
    return isinstance(message, dict) and cast(dict[str, Any], message).get("role") == "assistant"


def _parse_messages(messages: object) -> list[Message]:
    if not isinstance(messages, list) or not messages:
        raise DataError(f"messages must be a list with something in it, got {_kind(messages)}")
    return [_parse_message(message, f"messages[{i}]") for i, message in enumerate(cast(list[object], messages))]


def _as_messages(row: dict[str, Any]) -> list[Message]:
    completion = "response" if row.get("completion") is None else "completion"
    for key in ("prompt", completion):
        if row.get(key) is None:
            raise DataError(f"neither messages nor prompt with completion or response, nor text, got {_keys(row)}")
    question, answer = _text(row["prompt"], "prompt"), _text(row[completion], completion)
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def _parse_message(message: object, name: str) -> Message:
    if not isinstance(message, dict):
        raise DataError(f"{name} must be an object with role and content, got {_kind(message)}")
    fields = cast(dict[str, Any], message)
    role = fields.get("role")
    if role not in ROLES:
        raise DataError(f"{name}.role must be one of {', '.join(ROLES)}, got {role!r}")
    return {"role": role, "content": _text(fields.get("content"), f"{name}.content")}


def _text(text: object, name: str) -> str:
    if not isinstance(text, str):
        raise DataError(f"{name} must be text, got {_kind(text)}")
    if not text.strip():
        raise DataError(f"{name} is empty")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:  # JSON may hold it, no tokenizer takes it
        raise DataError(f"{name} holds half of a surrogate pair at character {error.start}") from error
    return text


def _kind(value: object) -> str:
    names = {dict: "an object", list: "a list", str: "text", bool: "a boolean", int: "a number", float: "a number"}
    if value is None:
        return "nothing"
    if value == []:
        return "an empty list"
    return names.get(type(value), type(value).__name__)


def _quickstart_path(split: str) -> Path:
    if split not in QUICKSTART_FILES:
        raise DataError(f'the quickstart set has the splits {" and ".join(QUICKSTART_FILES)}, got "{split}"')
    return Path(str(files("rayqd.data").joinpath("quickstart", QUICKSTART_FILES[split])))


def _read_jsonl(path: Path, on_bad_row: OnBadRow, parse: Parse) -> Rows:
    try:
        content = path.read_bytes().removeprefix(codecs.BOM_UTF8)
    except OSError as error:
        raise DataError(f"cannot read the data file {path}: {error.strerror}; check its path") from error
    # Lines end at b"\n" alone: str.splitlines would also cut at U+2028 and others, which JSON allows inside text.
    lines = [(number, line) for number, line in enumerate(content.split(b"\n"), start=1) if line.strip()]
    rows = Rows(
        name=str(path),
        length=len(lines),
        fetch=lambda index: _parse_json(lines[index][1]),
        where=lambda index: f"{path}:{lines[index][0]}",
        on_bad_row=on_bad_row,
        parse=parse,
    )
    for index in range(len(rows)):
        rows.row(index)
    return rows


def _parse_json(line: bytes) -> object:
    try:
        return json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise DataError(f"not UTF-8 (byte {error.start} of the line)") from error
    except json.JSONDecodeError as error:
        raise DataError(f"the line is not one JSON object ({error.msg}, column {error.colno})") from error
    except (ValueError, RecursionError) as error:  # numbers of over 4300 digits, brackets nested thousands deep
        raise DataError(f"the line is JSON that cannot be read ({error})") from error


def _read_hub(source: str, split: str, on_bad_row: OnBadRow, parse: Parse) -> Rows:
    from datasets import load_dataset
    from datasets.exceptions import DatasetsError

    try:
        dataset = load_dataset(source, split=split)
    except ConnectionError as error:
        raise DataError(
            f'cannot reach the hub for the data set "{source}"; connect this machine, give a .jsonl file '
            'as data.source or eval.source, or use "quickstart"'
        ) from error
    except (DatasetsError, OSError, ValueError, RuntimeError) as error:
        reason = (str(error).strip() or type(error).__name__).split("\n")[0].rstrip(".")
        raise DataError(
            f'cannot load the data set "{source}", split "{split}": {reason}; '
            "give the id of a data set and one of its splits, or the path of a .jsonl file"
        ) from error
    return Rows(
        name=f"{source} ({split})",
        length=len(dataset),
        fetch=lambda index: dataset[index],
        where=lambda index: f"{source} ({split}), row {index}",
        on_bad_row=on_bad_row,
        parse=parse,
    )
