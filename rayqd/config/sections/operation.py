"""What is measured and kept, and where it runs."""

from __future__ import annotations

from pydantic import Field

from rayqd.config.sections.base import Section


class Eval(Section):
    """What the held-out part is, and when it is looked at."""

    source: str | None = None
    """A .jsonl file, a data set id, or "quickstart"; none keeps the first `num_rows` rows of the shuffled data from
    training."""
    split: str = "test"
    """Split of a hub data set."""
    num_rows: int = Field(default=128, ge=1)
    """Held-out rows."""
    every: int = Field(default=0, ge=0)
    """Steps between evaluations; 0 looks only before the first and after the last step."""


class Checkpoint(Section):
    """What survives."""

    every: int = Field(default=100, ge=1)
    """Steps between checkpoints; the last step always leaves one."""
    keep: int = Field(default=2, ge=1)
    """Newest checkpoints kept."""


class RayCluster(Section):
    """Where it runs."""

    address: str | None = None
    """A running cluster ("auto", "ray://host:10001", "host:6379"); none uses RAY_ADDRESS, or else starts Ray on this
    machine."""
    dashboard: bool = False
    """Start the dashboard when Ray is started on this machine."""
    placement_timeout_seconds: float = Field(default=120, gt=0)
    """How long to wait for the cluster to make room for the roles."""
