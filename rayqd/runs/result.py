"""What `rayqd.distill` returns."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pydantic import JsonValue

from rayqd.events import ArmRow
from rayqd.runs.metrics_file import read_metrics


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Result:
    """What a finished run came to, and where it lies.

    >>> rayqd.distill(config)
    Result(name='mine', kl_to_teacher={'round-to-nearest INT4': 0.3666, 'GPTQ INT4': 0.1461, 'distilled INT4': 0.1315})
    """

    run_dir: Path  # config.toml, metrics.jsonl, result.json, checkpoints/, export/
    export_dir: Path  # what transformers and vLLM load
    rows: list[ArmRow]  # one a model, the teacher first, the distilled one last; as in result.json

    @property
    def name(self) -> str:
        """Return the name of the run."""
        return self.run_dir.name

    @property
    def kl_to_teacher(self) -> dict[str, float]:
        """Return KL(teacher‖student) on the held-out rows, in nats a token, of every arm but the teacher."""
        return {row["arm"]: row["kl_to_teacher"] for row in self.rows if row["kind"] != "teacher"}

    def metrics(self) -> list[dict[str, JsonValue]]:
        """Return the rows of metrics.jsonl, oldest first: each a step or an evaluation, as `event` says."""
        return read_metrics(self.run_dir)

    def __repr__(self) -> str:
        kl = {arm: round(value, 4) for arm, value in self.kl_to_teacher.items()}
        return f"Result(name={self.name!r}, kl_to_teacher={kl})"
