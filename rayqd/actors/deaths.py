"""Whether a role of a run was lost, or raised something of its own: what was lost can be started again.

Learner, Ray Train's controller and the run's own controller are lost together: the first two end with the third, in
whose process the second is where Ray is the run's own.
"""

# pyright: reportUnknownMemberType=false
# Ray's signatures are partly without types.

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import cast

from ray.exceptions import (
    NodeDiedError,
    ObjectLostError,
    OutOfMemoryError,
    RayActorError,
    RayTaskError,
    WorkerCrashedError,
)

from rayqd.actors.topology import find_log_dir
from rayqd.errors import RayqdError

MEMORY_IS_FULL = "its machine ran out of memory"
NODE_IS_GONE = "its node is gone"

_LOST = (RayActorError, ObjectLostError, OutOfMemoryError, NodeDiedError, WorkerCrashedError)
_LOST_IN_TRAIN = {"WorkerHealthCheckFailedError", "WorkerHealthCheckTimeoutError", "PreemptionError"}
_LOST_PEER = re.compile(  # how Gloo and NCCL say that another worker of theirs is gone
    r"connection (?:was )?(?:closed|reset|refused)|broken pipe|remote process exited|unhandled system error|"
    r"nccl communicator was aborted|timed out waiting \d+ms for (?:recv|send)",
    re.IGNORECASE,
)
_HOLDERS = ("controller_failure", "_base_exc", "health_check_failure")
_PROCESS = re.compile(r"pid[:=] ?(\d+)")
_MAX_LINES = 3


def is_death(error: BaseException) -> bool:
    """Return whether a process or its node was lost, and none of them raised an error of ours."""
    parts = list(_parts(error))
    return any(_is_loss(part) for part in parts) and not any(isinstance(part, RayqdError) for part in parts)


def find_own_error(error: BaseException) -> RayqdError | None:
    """Return the error of ours inside `error`: where one of several workers raises it, the others lose their peer."""
    return next((part for part in _parts(error) if isinstance(part, RayqdError) and not _is_envelope(part)), None)


def describe_death(error: BaseException) -> str:
    """Return in a few words what became of the process."""
    text = " ".join(str(part) for part in _parts(error))
    if "running low on memory" in text or any(isinstance(part, OutOfMemoryError) for part in _parts(error)):
        return MEMORY_IS_FULL
    if any(type(part).__name__ == "WorkerHealthCheckTimeoutError" for part in _parts(error)):
        return "it did not answer any more"
    if "node" in text and ("preempt" in text or "node has died" in text or "was terminated" in text):
        return NODE_IS_GONE
    return "its process is gone"


def last_words(error: BaseException) -> str:
    """Return the last lines that the lost process left in its log on this node; empty where there are none."""
    for process in dict.fromkeys(_PROCESS.findall(" ".join(str(part) for part in _parts(error)))):
        for file in find_log_dir().glob(f"worker-*-{process}.err"):
            lines = [line.strip() for line in file.read_text(errors="replace").splitlines()]
            if said := [line for line in lines if line and not line.startswith(":")][-_MAX_LINES:]:
                return " / ".join(said)
    return ""


def _is_loss(error: BaseException) -> bool:
    if isinstance(error, _LOST) or type(error).__name__ in _LOST_IN_TRAIN:
        return True
    is_collective = isinstance(error, RuntimeError) or "Dist" in type(error).__name__
    return is_collective and _LOST_PEER.search(str(error)) is not None


def _is_envelope(error: BaseException) -> bool:
    return isinstance(error, RayTaskError)  # which Ray makes an instance of the cause's class as well


def _parts(error: BaseException) -> Iterator[BaseException]:
    """Yield `error` and every error inside it; those of Ray Train by what they hold, as its import takes seconds."""
    yield error
    failures: dict[int, object] = getattr(error, "worker_failures", {})
    inner: list[object] = [getattr(error, name, None) for name in _HOLDERS]
    if isinstance(error, RayTaskError):
        inner = [cast("object", error.cause)]
    for part in (*inner, *failures.values()):
        if isinstance(part, BaseException) and part is not error:
            yield from _parts(part)
