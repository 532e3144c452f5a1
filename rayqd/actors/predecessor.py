"""A run is on a cluster once: its actors' names say whether it is there already."""

from __future__ import annotations

import time

from ray.util import list_named_actors

from rayqd.errors import RunError

_POLL_SECONDS = 0.5


def wait_for_predecessor(run: str, timeout_seconds: float = 20.0) -> None:
    """Wait until no actor of a run of this name is left; those of a job just stopped go within seconds.

    Raises RunError when they stay, because then that run goes on.
    """
    deadline = time.monotonic() + timeout_seconds
    while any(name.startswith(f"rayqd/{run}/") for name in list_named_actors()):
        if time.monotonic() > deadline:
            raise RunError(
                f"a run named {run} is going on on this cluster: stop it (`ray job list`, `ray job stop`), "
                "wait for its end, or give this one another name"
            )
        time.sleep(_POLL_SECONDS)
