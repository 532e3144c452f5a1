"""Why a run ended before its time, for whoever looks at its directory afterwards."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rayqd.errors import RayqdError

_NAME = "ended.json"
_STOPPED_EXIT_CODE = 130  # what shells give a process that Ctrl-C ends


@contextlib.contextmanager
def last_words(run_dir: Path) -> Iterator[None]:
    """Keeps in `ended.json` what breaks off the body: `{"state": "stopped" or "failed", "error", "exit_code", "time"}`.

    What an earlier attempt left is forgotten. A process that is killed says nothing.
    """
    file = run_dir / _NAME
    file.unlink(missing_ok=True)
    try:
        yield
    except BaseException as error:
        with contextlib.suppress(OSError):  # a full disk must not hide what went wrong
            file.write_text(json.dumps(_words_on(error) | {"time": time.time()}) + "\n")
        raise


def read_last_words(run_dir: Path) -> dict[str, Any] | None:
    """What `last_words` kept; None where a run ended otherwise, or has not ended."""
    try:
        return json.loads((run_dir / _NAME).read_text())
    except (OSError, ValueError):
        return None


def _words_on(error: BaseException) -> dict[str, Any]:
    if isinstance(error, KeyboardInterrupt | SystemExit):  # Ray turns a SIGTERM into the latter
        code = getattr(error, "code", None)
        return {"state": "stopped", "error": "", "exit_code": code if isinstance(code, int) else _STOPPED_EXIT_CODE}
    text = " ".join(str(error).split())
    if isinstance(error, RayqdError):
        return {"state": "failed", "error": text, "exit_code": error.exit_code}
    return {"state": "failed", "error": f"{type(error).__name__}: {text}", "exit_code": 1}
