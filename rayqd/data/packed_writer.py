"""Examples written one batch after the other, into memory or into files, and mapped once they are all there."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import IO, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from rayqd.data.example_set import Keys
from rayqd.data.packed_examples import PackedExamples, starts_of

SMALL_IDS = 1 << 16  # vocabularies below it take two bytes a token

_Dtype: TypeAlias = "np.dtype[Any]"


class PackedWriter:
    """To be appended to, and then closed."""

    def __init__(self, directory: Path | None = None, largest_id: int | None = None) -> None:
        """Write into `directory`, which is there, or into memory. No token is above `largest_id`, if that is known."""
        self._directory = directory
        self._is_small = largest_id is not None and largest_id < SMALL_IDS
        self._dtypes = _dtypes(is_small=self._is_small)
        self._columns: dict[str, IO[bytes]] = {
            name: BytesIO() if directory is None else (directory / name).open("wb") for name in self._dtypes
        }

    def append(self, examples: PackedExamples, keys: Keys) -> None:
        """Write the examples and the keys of their rows behind those that are there."""
        values: dict[str, NDArray[Any]] = {
            "rows": examples.rows,
            "keys": keys,
            "num_prompt": examples.num_prompt,
            "num_tokens": examples.num_tokens,
            "num_masked": np.diff(examples.masked_starts),
            "ids": examples.ids,
            "trained": examples.trained,
        }
        assert not self._is_small or not len(examples.ids) or int(examples.ids.max()) < SMALL_IDS
        for name, column in self._columns.items():
            column.write(np.ascontiguousarray(values[name], dtype=self._dtypes[name]).data)

    def close(self) -> tuple[PackedExamples, Keys]:
        """End the files; return what was written into memory, or nothing where it is in files."""
        if self._directory is not None:
            for column in self._columns.values():
                column.close()
            return PackedExamples.of([]), np.zeros(0, dtype=np.uint64)
        buffers = {name: column.getbuffer() for name, column in self._columns.items() if isinstance(column, BytesIO)}
        return _assemble({name: np.frombuffer(buffers[name], dtype) for name, dtype in self._dtypes.items()})


def map_packed(directory: Path, *, largest_id: int | None) -> tuple[PackedExamples, Keys]:
    """Return the examples that were written into `directory`, mapped into memory, and the keys of their rows."""
    is_small = largest_id is not None and largest_id < SMALL_IDS
    return _assemble({name: _map(directory / name, dtype) for name, dtype in _dtypes(is_small=is_small).items()})


def _map(file: Path, dtype: _Dtype) -> NDArray[Any]:
    if file.stat().st_size == 0:  # which cannot be mapped
        return np.zeros(0, dtype)
    return np.asarray(np.memmap(file, dtype=dtype, mode="r"))  # as a plain array, which travels without a copy


def _assemble(columns: dict[str, NDArray[Any]]) -> tuple[PackedExamples, Keys]:
    examples = PackedExamples(
        rows=columns["rows"],
        num_prompt=columns["num_prompt"],
        starts=starts_of(columns["num_tokens"]),
        ids=columns["ids"],
        masked_starts=starts_of(columns["num_masked"]),
        trained=columns["trained"],
    )
    return examples, columns["keys"]


def _dtypes(*, is_small: bool) -> dict[str, _Dtype]:
    """Return what each column holds; little-endian, which is what every machine that runs this has."""
    return {
        "rows": np.dtype("<i8"),
        "keys": np.dtype("<u8"),
        "num_prompt": np.dtype("<i4"),
        "num_tokens": np.dtype("<i4"),
        "num_masked": np.dtype("<i4"),
        "ids": np.dtype("<u2" if is_small else "<i4"),
        "trained": np.dtype("?"),
    }
