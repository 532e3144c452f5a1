"""What can go wrong, as a user meets it: each prints as one line that says what, where, and what to do.

RayqdError
├── ConfigError        the configuration cannot mean anything, or does not fit the model
├── DataError          a row or a file of the data cannot be used (names file and line)
├── ModelError         a model or tokenizer is missing, incomplete, or does not fit its partner
├── RunError           the run directory belongs to another configuration, or is damaged
├── StorageError       a checkpoint or an export could not be written
├── PlacementError     the cluster has no room for the roles
└── WorkerError        a role died and could not be brought back

Every class takes its message alone, so that it survives the trip between processes.
"""

from __future__ import annotations


class RayqdError(Exception):
    """Base of everything a user can cause or mend; `exit_code` is what the command returns."""

    exit_code = 1


class ConfigError(RayqdError):
    exit_code = 2


class DataError(RayqdError):
    pass


class ModelError(RayqdError):
    pass


class RunError(RayqdError):
    pass


class StorageError(RayqdError):
    pass


class PlacementError(RayqdError):
    pass


class WorkerError(RayqdError):
    pass
