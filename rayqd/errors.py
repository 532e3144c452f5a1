"""What can go wrong, as a user meets it: each prints as one line that says what, where, and what to do.

RayqdError
├── ConfigError
├── DataError
├── ModelError
├── RunError
├── StorageError
├── PlacementError
└── WorkerError
    ├── StallError
    └── DeathError
        └── HangError

Every class takes its message alone, so that it survives the trip between processes.
"""

from __future__ import annotations


class RayqdError(Exception):
    """Base of everything a user can cause or put right; `exit_code` is what the command returns."""

    exit_code = 1


class ConfigError(RayqdError):
    """The configuration cannot mean anything, or does not fit the model."""

    exit_code = 2


class DataError(RayqdError):
    """A row or a file of the data cannot be used; names file and line."""


class ModelError(RayqdError):
    """A model or tokenizer is missing, incomplete, or does not fit its partner."""


class RunError(RayqdError):
    """The run directory belongs to another configuration, or is damaged."""


class StorageError(RayqdError):
    """A checkpoint or an export could not be written."""


class DamagedStorageError(StorageError):
    """What was read from a storage is not what was written there."""


class PlacementError(RayqdError):
    """The cluster has no room for the roles."""


class WorkerError(RayqdError):
    """A role died and could not be brought back."""


class StallError(WorkerError):
    """A role is there, and does not go on."""


class DeathError(WorkerError):
    """Learner or controller is gone, and can be started again from the last checkpoint."""


class HangError(DeathError):
    """The learner ended itself because its work stood still, which is likely to come again: once it is tried."""
