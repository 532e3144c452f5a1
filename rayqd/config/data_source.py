"""What the text of `data.source` and `eval.source` names: the one place that tells a file from a data set's id."""

from __future__ import annotations

from pathlib import Path

QUICKSTART = "quickstart"
_FILES = (".jsonl", ".ndjson", ".json", ".parquet", ".csv", ".tsv", ".txt", ".arrow", ".gz", ".zst", ".bz2", ".xz")
_WILDCARDS = "*?["


def path_of_source(source: str) -> Path | None:
    """Return the file that `source` names, which may be missing; None for the quickstart set, for an id on the hub, and
    for what names several files or one elsewhere.

    An id may look like a path: a name with a data file's suffix (.jsonl, .parquet, ...), or one that begins with ".",
    "/" or "~", is a path all the same, and so is that of any file that exists.
    """
    path = Path(source).expanduser()
    if source == QUICKSTART or is_url(source) or (is_pattern(source) and not path.exists()):
        return None
    cannot_be_id = source.startswith((".", "/", "~")) and not path.is_dir()
    return path if path.is_file() or (path.suffix in _FILES and not path.is_dir()) or cannot_be_id else None


def existing_file_of_source(source: str) -> Path | None:
    """Return the file that `source` names if it exists."""
    path = path_of_source(source)
    return path if path and path.is_file() else None


def is_url(source: str) -> bool:
    """Return whether `source` is a URL: s3://bucket/rows.jsonl, https://..., hf://..."""
    return "://" in source


def is_pattern(source: str) -> bool:
    """Return whether `source` has wildcards: data/*.jsonl, which no id has."""
    return not is_url(source) and any(character in source for character in _WILDCARDS)
