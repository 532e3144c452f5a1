"""Whether this process is the entrypoint of a job that Ray started (`ray job submit`), and what that changes."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

_JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"  # set by Ray's job supervisor: runtime_env and metadata of the job, as JSON


def runtime_env_of_the_job() -> dict[str, Any]:
    """Return what `ray job submit` settled for every process of the job; empty outside of a job."""
    return json.loads(os.environ.get(_JOB) or "{}").get("runtime_env") or {}


def lasting_directory() -> Path:
    """Return where relative paths of results begin: the working directory, unless that is Ray's copy for a job.

    Ray names the copy after its content and removes it when it needs the room: a run in there would be lost, and a
    resubmission with one more file would not find it. The home directory on the same node stays.
    """
    here = Path.cwd()
    return Path.home() if "working_dir_files" in here.parts else here
