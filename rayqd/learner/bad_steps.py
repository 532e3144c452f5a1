"""The sequences of a step whose gradient was inf or nan, for who wants to know why."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rayqd.types import ScoredRollout


def keep_share(directory: Path, step: int, share: Sequence[ScoredRollout]) -> None:
    """Write a learner worker's sequences of `step`, counted from 1, to one .npz file; raises OSError.

    Sequence 3 of the batch is in `prompt_ids-3` [P], `completion_ids-3` [C] and `policy_version-3`, which is -1 for one
    that comes from the data.
    """
    arrays: dict[str, NDArray[np.int32]] = {}
    for rollout in (scored.rollout for scored in share):
        version = -1 if rollout.policy_version is None else rollout.policy_version
        arrays[f"prompt_ids-{rollout.index}"] = rollout.prompt_ids
        arrays[f"completion_ids-{rollout.index}"] = rollout.completion_ids
        arrays[f"policy_version-{rollout.index}"] = np.array(version, np.int32)
    directory.mkdir(parents=True, exist_ok=True)
    indices = "-".join(str(scored.rollout.index) for scored in share[:1])  # no other worker has the same
    with (directory / f"step-{step:06d}-sequence-{indices}.npz").open("wb") as stream:
        np.savez(stream, allow_pickle=False, **arrays)
