"""Which files of a checkpoint's directory its tensors lie in, as its index says."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import cast

from rayqd.errors import ModelError

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"

_PLAIN_NAME = re.compile(r"[^/\\]+\.safetensors")


def indexed_files(directory: Path) -> list[Path] | None:
    """Return the files that the index in `directory` names, sorted, whether they are there or not.

    None where there is none, or a model.safetensors beside it, which transformers then loads instead.
    Raises ModelError where the index is damaged, or names what lies elsewhere: files that no digest, size or copy of
    the directory takes in.
    """
    index = directory / INDEX
    if not index.is_file() or (directory / SINGLE).is_file():
        return None
    try:
        names = set(cast("list[object]", list(json.loads(index.read_text())["weight_map"].values())))
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise ModelError(f"{index} is damaged ({type(error).__name__}): download the model again") from error
    for name in sorted(names, key=str):
        if not (isinstance(name, str) and _PLAIN_NAME.fullmatch(name)):
            raise ModelError(
                f"{index} names {name!r}, which is no .safetensors file of this directory: put the file beside the "
                "index and name it there alone, or download the model again"
            )
    return [directory / name for name in sorted(map(str, names))]
