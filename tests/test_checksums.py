"""What was written is read back, and no byte of it can change unseen."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rayqd.checksums import (
    CHECKSUM,
    CHECKSUMS,
    DamagedError,
    find_damage,
    from_checked_json,
    seal,
    to_checked_json,
    to_checked_line,
)

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
ROW = {
    "event": "step",
    "step": 12,
    "loss": 0.1 + 0.2,
    "arm": "distilled INT4",
    "none": math.nan,
    "parts": [1, {"a": 2}],
}


@given(st.dictionaries(st.text(max_size=5).filter(lambda key: key != CHECKSUM), VALUES, max_size=4))
def test_an_object_comes_back(content: dict[str, object]) -> None:
    assert from_checked_json(to_checked_json(content).encode()) == content
    assert from_checked_json(to_checked_line(content).encode()) == content
    assert to_checked_line(content).count("\n") == 1


def test_no_bit_of_an_object_can_flip_unseen() -> None:
    text = to_checked_line(ROW).encode()
    whole = json.dumps(from_checked_json(text))
    for position in range(8 * len(text)):
        flipped = bytearray(text)
        flipped[position // 8] ^= 1 << position % 8
        try:
            content = from_checked_json(bytes(flipped))
        except DamagedError:
            continue
        if json.dumps(content) == whole:
            continue  # the newline, or a space between two of its parts
        # Its key changed, and nothing else: it then counts as an object that never had a checksum.
        assert len(content) == len(ROW) + 1
        assert json.dumps(dict(list(content.items())[:-1])) == whole


def test_an_object_of_an_earlier_version_is_taken_as_it_is() -> None:
    assert from_checked_json(b'{"step": 3}') == {"step": 3}


@pytest.mark.parametrize("text", [b"", b"[1]", b"null", b'{"step": 3', b"\xff\xfe", b"\x00" * 40])
def test_what_is_no_object_is_damaged(text: bytes) -> None:
    with pytest.raises(DamagedError, match="is no JSON"):
        from_checked_json(text)


def test_a_directory_is_whole_until_something_in_it_changes(tmp_path: Path) -> None:
    (tmp_path / "inner").mkdir()
    files = {"a": b"some bytes", "inner/b": bytes(100), "empty": b""}
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    seal(tmp_path)
    assert find_damage(tmp_path) is None
    for name, content in files.items():
        if content:
            (tmp_path / name).write_bytes(content[:-1] + b"!")
            assert find_damage(tmp_path) == f"{name} is not what was written"
        (tmp_path / name).write_bytes(content + b"!")
        assert find_damage(tmp_path) == f"{name} has {len(content) + 1} bytes of {len(content)}"
        (tmp_path / name).unlink()
        assert find_damage(tmp_path) == f"{name} is missing"
        (tmp_path / name).write_bytes(content)
    assert find_damage(tmp_path) is None
    (tmp_path / CHECKSUMS).unlink()
    assert find_damage(tmp_path) == f"{CHECKSUMS} is missing"
