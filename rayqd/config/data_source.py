"""What the text of `data.source` and `eval.source` names: the one place that tells a file from a data set's id."""

from __future__ import annotations

from pathlib import Path

QUICKSTART = "quickstart"


def path_of_source(source: str) -> Path | None:
    """Return the file that `source` names, which may be missing; None for the quickstart set and for an id on the hub.

    An id may look like a path: a name with the suffix .jsonl or .json, or one that begins with ".", "/" or "~", is a
    path all the same, and so is that of any file that exists.
    """
    if source == QUICKSTART:
        return None
    path = Path(source).expanduser()
    cannot_be_id = source.startswith((".", "/", "~")) and not path.is_dir()
    return path if path.is_file() or path.suffix in (".jsonl", ".json") or cannot_be_id else None


def existing_file_of_source(source: str) -> Path | None:
    """Return the file that `source` names if it exists."""
    path = path_of_source(source)
    return path if path and path.is_file() else None
