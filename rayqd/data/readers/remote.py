"""Files behind a URL, brought here once."""

from __future__ import annotations

import shutil
from hashlib import blake2b
from pathlib import Path, PurePosixPath
from typing import IO, cast
from urllib.parse import urlsplit

from rayqd.errors import DataError
from rayqd.files import replace_file


def fetch_url(url: str) -> Path:
    """Return a copy of the file at `url` in the cache, fetched again once its size or time there has changed.

    Takes what `storage` takes (s3://, gs://, file://, ...) and everything else that fsspec knows (https://, hf://).
    Raises DataError, without what stands after "?" in it, where the file cannot be had.
    """
    from rayqd.model.source import cache_dir
    from rayqd.runs.storage.folder import filesystem_of, redact

    shown = redact(url)
    try:
        filesystem, path = filesystem_of(url)
        info = filesystem.get_file_info(path)
        if not info.is_file:
            raise FileNotFoundError("there is no such file")
        key = blake2b(f"{url}\0{info.size}\0{info.mtime_ns}".encode(), digest_size=16).hexdigest()
        target = cache_dir() / "data" / key / (PurePosixPath(urlsplit(shown).path).name or "data")
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            with (
                replace_file(target, concurrent=True) as partial,
                filesystem.open_input_stream(path, compression=None) as source,
                partial.open("wb") as copy,
            ):
                shutil.copyfileobj(cast(IO[bytes], source), copy, 1 << 20)
    except (OSError, ValueError, ImportError, RuntimeError) as error:
        what = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"cannot fetch {shown}: {what}") from error
    return target
