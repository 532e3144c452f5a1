"""A file that is one JSON array of rows. It is read whole: nothing in it says where a row begins."""

from __future__ import annotations

import json
from pathlib import Path
from typing import cast

from rayqd.data.readers.identity import identify_file
from rayqd.data.readers.table import Table
from rayqd.errors import DataError


def read_json_array(path: Path, name: str) -> Table:
    """Open it. Raises DataError where it is no JSON, or no array."""
    try:
        rows = json.loads(path.read_text(encoding="utf-8-sig"))
    except UnicodeDecodeError as error:
        raise DataError(f"{name}: is not UTF-8 (byte {error.start})") from error
    except json.JSONDecodeError as error:
        raise DataError(
            f"{name}:{error.lineno}: the array is broken here ({error.msg}, column {error.colno}): mend it, "
            "or write a JSON object a line"
        ) from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{name}: is JSON that cannot be read ({error})") from error
    if not isinstance(rows, list):
        raise DataError(f"{name}: holds one JSON value and no rows: write an array of objects, or an object a line")
    elements = cast(list[object], rows)
    return Table(
        name=name,
        num_rows=len(elements),
        fetch=elements.__getitem__,
        location=lambda index: f"{name}, element {index}",
        identity=lambda: identify_file(path),
    )
