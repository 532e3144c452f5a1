"""What really went wrong, out of the envelopes that Ray puts around it."""

# pyright: reportUnknownMemberType=false
# Ray's signatures are partly without types.

from __future__ import annotations

from typing import cast

from ray.exceptions import RayTaskError
from ray.train import ControllerError, WorkerGroupError

from rayqd.errors import RayqdError, WorkerError


def unwrap_error(error: BaseException, who: str) -> RayqdError:
    """Return the error of ours inside `error`; else a WorkerError that names `who`, with its last line."""
    inner = error
    while (cause := _find_cause(inner)) is not None:
        inner = cause
    if isinstance(inner, RayqdError):
        return inner
    return WorkerError(f"{who} failed: {type(inner).__name__}: {_last_line(inner)}")


def _find_cause(error: BaseException) -> BaseException | None:
    match error:
        case RayTaskError():
            # Ray makes its error an instance of the cause's class as well, so the cause is asked for first.
            cause = cast("object", error.cause)
            return cause if isinstance(cause, BaseException) and cause is not error else None
        case WorkerGroupError():
            return next(iter(error.worker_failures.values()), None)
        case ControllerError():
            return error.controller_failure
        case _:
            return getattr(error, "_base_exc", None)  # Ray Train's wrapper around an exception of the user's code


def _last_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else "no message"
