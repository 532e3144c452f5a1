"""Why a run ended before its last step, for whoever looks at its directory afterwards."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Generator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from pydantic import TypeAdapter

from rayqd.errors import RayqdError
from rayqd.runs.paths import ENDED

_STOPPED_EXIT_CODE = 130  # what shells give a process that Ctrl-C ends


@dataclass(frozen=True, slots=True, kw_only=True)
class AbnormalExit:
    """What broke a run off."""

    state: Literal["stopped", "failed"]  # stopped by a signal, or failed by itself
    error: str  # in one line; "" where it was stopped
    exit_code: int  # of the command
    time: float  # seconds since the epoch


@contextlib.contextmanager
def record_abnormal_exit(run_dir: Path) -> Generator[None]:
    """Keep in `ended.json` what breaks off the body, which is raised again.

    What an earlier attempt left is removed first. A process that is killed leaves nothing.
    """
    file = run_dir / ENDED
    file.unlink(missing_ok=True)
    try:
        yield
    except BaseException as error:
        with contextlib.suppress(OSError):  # a full disk must not hide what went wrong
            file.write_text(json.dumps(asdict(_describe(error))) + "\n")
        raise


def read_abnormal_exit(run_dir: Path) -> AbnormalExit | None:
    """Return what `record_abnormal_exit` kept; None where a run ended otherwise, or has not ended."""
    try:
        return _ABNORMAL_EXIT.validate_json((run_dir / ENDED).read_bytes())
    except (OSError, ValueError):
        return None


_ABNORMAL_EXIT = TypeAdapter(AbnormalExit)


def _describe(error: BaseException) -> AbnormalExit:
    now = time.time()
    if isinstance(error, KeyboardInterrupt | SystemExit):  # Ray turns a SIGTERM into the latter
        code = getattr(error, "code", None)
        code = code if isinstance(code, int) else _STOPPED_EXIT_CODE
        return AbnormalExit(state="stopped", error="", exit_code=code, time=now)
    text = " ".join(str(error).split())
    if isinstance(error, RayqdError):
        return AbnormalExit(state="failed", error=text, exit_code=error.exit_code, time=now)
    return AbnormalExit(state="failed", error=f"{type(error).__name__}: {text}", exit_code=1, time=now)
