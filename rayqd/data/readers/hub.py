"""Data sets of the hub, and directories, through the library that knows both."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

from rayqd.data.nearest import no_such
from rayqd.data.readers.files import table_of_dataset
from rayqd.data.readers.identity import identify_file
from rayqd.data.readers.table import Table, select_split
from rayqd.errors import DataError

_SUFFIXES = {"json": (".jsonl", ".json"), "csv": (".csv", ".tsv"), "parquet": (".parquet",), "arrow": (".arrow",)}
_SAVED = ("dataset_dict.json", "state.json")  # of `save_to_disk`, of several splits and of one


def read_directory(path: Path, split: str, subset: str | None) -> Table:
    """Open a directory: what `save_to_disk` wrote, or files in any layout that `datasets` takes. Raises DataError."""
    if (path / _SAVED[0]).is_file() or (path / _SAVED[1]).is_file():
        return _read_saved(path, split, subset)
    return read_hub(str(path), split, subset)


def read_hub(source: str, split: str, subset: str | None) -> Table:
    """Open a split, or an expression of splits such as `train[:5%]+test`, of a data set on the hub or in a directory.

    Raises DataError, in one line, where there is no such set, subset or split: with those that there are.
    """
    from datasets import load_dataset
    from datasets.exceptions import DatasetsError

    try:
        rows = load_dataset(source, split=split) if subset is None else load_dataset(source, subset, split=split)
    except ConnectionError as error:
        raise DataError(
            f'cannot reach the hub for the data set "{source}"; connect this machine, give a .jsonl file '
            'as data.source or eval.source, or use "quickstart"'
        ) from error
    except (DatasetsError, OSError, ValueError, RuntimeError) as error:
        raise DataError(_explain(source, split, subset, error)) from error
    part = split if subset is None else f"{subset}, {split}"
    remarks = _other_kinds(Path(source), str(rows.info.builder_name)) if Path(source).is_dir() else ()
    # What the library read, or took of its own cache: the digest of the files' revisions or times, and of the split.
    return table_of_dataset(rows, f"{source} ({part})", identity=lambda: str(rows._fingerprint), remarks=remarks)


def _other_kinds(path: Path, builder: str) -> tuple[str, ...]:
    """Say which files of a directory the library passes over: it reads those of one kind alone."""
    suffixes = {
        suffix: builder_of
        for builder_of, names in _SUFFIXES.items()
        for suffix in names
        if any(path.rglob(f"*{suffix}"))
    }
    others = sorted(suffix for suffix, builder_of in suffixes.items() if builder_of != builder)
    if builder not in suffixes.values() or not others:
        return ()
    read = " and ".join(sorted(suffix for suffix, builder_of in suffixes.items() if builder_of == builder))
    return (f"{path}: has files of several kinds, and its {read} alone are read, none of {', '.join(others)}",)


def _read_saved(path: Path, split: str, subset: str | None) -> Table:
    from datasets import DatasetDict, load_from_disk

    if subset is not None:
        raise DataError(f'{path}: was written by save_to_disk and has no subsets: leave data.subset="{subset}" out')
    try:
        saved: Any = load_from_disk(str(path))
    except (OSError, ValueError, RuntimeError) as error:
        what = " ".join(str(error).split())
        raise DataError(f"{path}: was written by save_to_disk and cannot be read: {what}") from error
    if not isinstance(saved, DatasetDict):
        return select_split(_table_of_saved(saved, f"{path} ({split})"), split)
    name = split.partition("[")[0]
    if name not in saved:
        raise DataError(f"{path}: {no_such('split', name, [str(key) for key in saved])}")
    return select_split(_table_of_saved(saved[name], f"{path} ({split})"), split)


def _table_of_saved(rows: Any, name: str) -> Table:
    files = [Path(file["filename"]) for file in rows.cache_files]
    return table_of_dataset(rows, name, identity=(lambda: " ".join(map(identify_file, files))) if files else None)


def _explain(source: str, split: str, subset: str | None, error: Exception) -> str:
    """Say in one line why the library did not load it, with what there is where it lists that."""
    said = " ".join(str(error).split())
    there = [str(name) for name in _listed(said)]
    what = f'cannot load the data set "{source}"'
    if "Unknown split" in said and there:
        return f"{what}: {no_such('split', split.partition('[')[0], there)}"
    if "BuilderConfig" in said and there:
        return f"{what}: {no_such('subset', subset or '', there)} as data.subset"
    if "Config name is missing" in said and there:
        return f"{what}: it has the subsets {', '.join(there)}: name one as data.subset"
    reason = (str(error).strip() or type(error).__name__).split("\n")[0].rstrip(".")
    return (
        f'{what}, split "{split}": {reason}; give the id of a data set and one of its splits, '
        "or the path of a .jsonl file"
    )


def _listed(text: str) -> list[object]:
    """Return the Python list that stands in `text`; none where there is none."""
    found = re.search(r"\[[^\[\]]*\]", text)
    try:
        return list(ast.literal_eval(found.group())) if found else []
    except (SyntaxError, ValueError):
        return []
