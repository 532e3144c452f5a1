"""What an actor raised reaches the user as a line, and whoever logs it with the place where it happened."""

import pickle
import traceback
from typing import Any

from ray.exceptions import RayTaskError

from rayqd.actors.failures import unwrap_error
from rayqd.errors import DataError, WorkerError


def raised_in_an_actor(error: Exception) -> Any:
    try:
        raise error
    except Exception as cause:  # noqa: BLE001
        return RayTaskError("write", traceback.format_exc(), cause).as_instanceof_cause()


def test_an_error_of_a_librarys_keeps_its_place_as_a_note_through_pickling() -> None:
    found = unwrap_error(raised_in_an_actor(IndexError("index 8 is out of bounds")), "rollout-0")
    sent: Any = pickle.loads(pickle.dumps(found))
    assert str(sent) == "rollout-0 failed: IndexError: index 8 is out of bounds"
    assert isinstance(sent, WorkerError)
    (note,) = sent.__notes__
    assert "raised_in_an_actor" in note


def test_an_error_of_ours_says_all_by_itself() -> None:
    found = unwrap_error(raised_in_an_actor(DataError("rows.jsonl:3: is broken")), "rollout-0")
    assert (type(found), str(found)) == (DataError, "rows.jsonl:3: is broken")
    assert not hasattr(found, "__notes__")
