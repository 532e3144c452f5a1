"""Benchmarks of lm-eval whose documents lie in a file of yours: `eval.local_data`, as arc_easy=arc.jsonl.

The task stays lm-eval's own, question, choices and metric; only where its documents come from is another. For that a
task file is written that includes lm-eval's.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import cast

from rayqd.errors import ConfigError, DataError
from rayqd.files import replace_file
from rayqd.model.source import cache_dir

STUDY = ("hellaswag", "arc_easy", "arc_challenge", "winogrande", "mmlu")  # of the study that rayqd grew out of

# Where lm-eval has the tasks that are asked most, so that its 14,000 files need not be read, and what they read.
_FILES = {
    "arc_easy": "arc/arc_easy.yaml",
    "arc_challenge": "arc/arc_challenge.yaml",
    "hellaswag": "hellaswag/hellaswag.yaml",
    "winogrande": "winogrande/default.yaml",
    "gsm8k": "gsm8k/gsm8k.yaml",
}
_FIELDS = {
    "arc_easy": ("question", "choices", "answerKey"),
    "arc_challenge": ("question", "choices", "answerKey"),
    "hellaswag": ("activity_label", "ctx_a", "ctx_b", "endings", "label"),
    "winogrande": ("sentence", "option1", "option2", "answer"),
    "gsm8k": ("question", "answer"),
}


_ANSWERS = ("answer", "answerKey", "label")


def expand(tasks: Sequence[str]) -> list[str]:
    """Return the tasks, each once, with the five of `study` in its place."""
    return list(dict.fromkeys(each for name in tasks for each in (STUDY if name == "study" else (name,))))


def write_task_files(local: Mapping[str, str]) -> Path:
    """Write a task file for each task that has a file of yours, by the task's own name; return their directory.

    It is the same one every time, since lm-eval keeps it in what it says of a task.

    Raises ConfigError for a name that lm-eval has no task of, DataError at the first line that lacks a field.
    """
    files = {name: Path(given).expanduser().absolute() for name, given in local.items()}
    named = json.dumps({name: str(file) for name, file in files.items()})
    directory = cache_dir() / "local-tasks" / hashlib.sha256(named.encode()).hexdigest()[:16]
    directory.mkdir(parents=True, exist_ok=True)
    for name, file in files.items():
        _check(name, file)
        text = _OF_A_FILE.format(include=json.dumps(str(_find(name))), name=name, file=json.dumps(str(file)))
        with replace_file(directory / f"{name}.yaml", concurrent=True) as partial:
            partial.write_text(text, encoding="utf-8")
    return directory


_OF_A_FILE = """\
include: {include}
task: {name}
tag: null
dataset_path: json
dataset_name: null
dataset_kwargs: {{data_files: {{test: {file}}}}}
training_split: null
validation_split: null
fewshot_split: test
test_split: test
"""


def _find(name: str) -> Path:
    import lm_eval
    from lm_eval.tasks import TaskManager
    from lm_eval.tasks._index import Kind

    known = Path(str(lm_eval.__file__)).parent / "tasks" / _FILES.get(name, "")
    if known.is_file():
        return known
    entry = TaskManager().task_index.get(name)
    if entry is None or entry.kind != Kind.TASK or entry.yaml_path is None:
        what = "is a group or tag: name its tasks, each with a file" if entry else "is no task of lm-eval"
        raise ConfigError(f"eval.local_data: {name} {what}")
    return entry.yaml_path


def _check(name: str, file: Path) -> None:
    """Raise DataError where a line is no object, or lacks a field: `datasets` would make an empty one of it."""
    known = _FIELDS.get(name)
    try:
        with file.open(encoding="utf-8") as stream:
            for number, line in enumerate(stream, start=1):
                row = _parse(line, f"{file}, line {number}") if line.strip() else None
                if row is None:
                    continue
                known = known or tuple(row)
                if missing := next((field for field in known if _lacks(row, field, is_read=name in _FIELDS)), None):
                    raise DataError(f"{file}, line {number}: has no field {missing}, which task {name} reads")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"eval.local_data, {name}: {file} cannot be read ({error})") from error
    if known is None:
        raise DataError(f"eval.local_data, {name}: {file} has no rows")


def _lacks(row: Mapping[str, object], field: str, *, is_read: bool) -> bool:
    """Return whether a row has no such field, or, of a field that is read for certain, nothing in it."""
    if field not in row or not is_read:
        return field not in row
    return row[field] is None or (row[field] == "" and field in _ANSWERS)  # as in tests whose answers are not public


def _parse(line: str, place: str) -> dict[str, object]:
    try:
        row: object = json.loads(line)
    except ValueError as error:
        raise DataError(f"{place}: is no JSON ({error}); the file needs an object a line") from error
    if not isinstance(row, dict):
        raise DataError(f"{place}: is no object; the file needs one a line")
    return cast("dict[str, object]", row)
