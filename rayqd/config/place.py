"""What `storage` may be, as far as its spelling tells."""

from __future__ import annotations

import re

_PLACE = re.compile(r"[a-z][a-z0-9+.-]*://\S|[/~.]|[^:]*/")
_PASSWORD = re.compile(r"://[^/@]*:[^/@]*@")


def check_place(storage: str | None) -> None:
    """Raises ValueError where it is neither a URI nor a path, or tells everybody a password."""
    if storage is None:
        return
    if not _PLACE.match(storage):
        raise ValueError(f"storage={storage} is no place: write s3://bucket/folder, gs://bucket/folder or /a/path")
    if _PASSWORD.search(storage):
        raise ValueError("storage has a password in it, which config.toml would show: leave it to the environment")
