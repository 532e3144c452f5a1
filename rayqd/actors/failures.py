"""What really went wrong, out of the envelopes that Ray puts around it."""

# pyright: reportUnknownMemberType=false
# Ray's signatures are partly without types.

from __future__ import annotations

import re
import sys
from typing import cast

from ray.exceptions import LocalRayletDiedError, ObjectStoreFullError, OutOfDiskError, OutOfMemoryError, RayTaskError

from rayqd.errors import RayqdError, StorageError, WorkerError

_MEMORY = re.compile(r"was ([\d.]+ ?[KMGT]?i?B)(?: used)? / ([\d.]+ ?[KMGT]?i?B)")


def unwrap_error(error: BaseException, who: str) -> RayqdError:
    """Return the error of ours inside `error`; else a WorkerError that names `who`, with its last line.

    Where it happened is a note of the latter: what logs the error writes it, and the user's terminal does not.
    """
    inner: BaseException = error
    where = ""
    while (cause := _find_cause(inner)) is not None:
        if isinstance(inner, RayTaskError):
            where = str(cast("object", inner))
        inner = cause
    if isinstance(inner, RayqdError):
        return inner
    if (known := _explain_known(inner, who)) is not None:
        return known
    failed = WorkerError(f"{who} failed: {type(inner).__name__}: {_last_line(inner)}")
    if where:
        failed.add_note(where)
    return failed


def _find_cause(error: BaseException) -> BaseException | None:
    match error:
        case RayTaskError():
            # Ray makes its error an instance of the cause's class as well, so the cause is asked for first.
            cause = cast("object", error.cause)
            return cause if isinstance(cause, BaseException) and cause is not error else None
        case _:
            return _find_cause_in_train(error)


def _find_cause_in_train(error: BaseException) -> BaseException | None:
    if "ray.train" in sys.modules:  # whose import takes seconds, and without which there is no error of its
        from ray.train import ControllerError, WorkerGroupError

        if isinstance(error, WorkerGroupError):
            return next(iter(error.worker_failures.values()), None)
        if isinstance(error, ControllerError):
            return error.controller_failure
    return getattr(error, "_base_exc", None)  # Ray Train's wrapper around an exception of the user's code


def _explain_known(error: BaseException, who: str) -> RayqdError | None:
    """Return what to do about a death that the machine, not the program, is the cause of."""
    text = str(error)
    if isinstance(error, OutOfMemoryError) or "running low on memory" in text:
        used = _MEMORY.search(text)
        in_use = f" ({used[1]} of {used[2]} in use)" if used else ""
        return WorkerError(
            f"{who} was ended because its machine ran out of memory{in_use}: end other programs, give the container "
            "more, or let the run take less: fewer workers, shorter sequences, a smaller learner.microbatch_tokens"
        )
    if isinstance(error, ObjectStoreFullError):
        return WorkerError(
            f"{who} found no room in Ray's object store, which lies in /dev/shm: in a container give --shm-size=4g or "
            "more, or lower rollout.max_staleness, teacher.prefetch_steps or learner.batch_size"
        )
    if isinstance(error, OutOfDiskError):
        return StorageError(f"{who}: the disk of Ray's files is full: make room, or set RAY_TMPDIR to another disk")
    if isinstance(error, LocalRayletDiedError):
        return WorkerError(
            "Ray's own process on this machine (raylet) has died, as it does when memory runs out: the same command "
            "goes on from the last checkpoint"
        )
    return None


def _last_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else "no message"
