"""The run's directory on the node of this process."""

from __future__ import annotations

import shutil

from rayqd.config import Config
from rayqd.model.source import cache_dir
from rayqd.runs.paths import RUN_ID
from rayqd.runs.storage.stored_run import StoredRun


def localize_run_dir(config: Config) -> Config:
    """Return `config` with a run directory that this node can write, and in which nothing of another run lies.

    That is the driver's own where this node has it, being the driver's machine or sharing a disk with it. Elsewhere it
    is one in the cache, named after the run's id. Without `storage` there is only the driver's.
    """
    stored = StoredRun.of(config)
    if stored is None:
        return config
    run_id = stored.run_id or ""
    own = config.run_dir / RUN_ID
    if own.is_file() and own.read_text() == run_id:
        return config
    return config.model_copy(update={"runs_dir": cache_dir() / "runs" / run_id})


def remove_local_run_dir(config: Config, local: Config) -> None:
    """Remove what a finished run left in this node's cache; `local` is `localize_run_dir(config)`."""
    if local.runs_dir != config.runs_dir:
        shutil.rmtree(local.runs_dir, ignore_errors=True)
