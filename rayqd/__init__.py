"""Distil a language model into its own INT4 self.

result = rayqd.distill(rayqd.Config(name="mine", model={"name": "smollm2-135m"}, quant={"group_size": 64}))
result.kl_to_teacher, result.export_dir, result.metrics()
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rayqd.commands.distill import distill
    from rayqd.config import Config
    from rayqd.runs.result import Result

__all__ = ["Config", "Result", "distill"]


def __getattr__(name: str) -> Any:
    """Import `name` when it is asked for: the command line must answer before torch and Ray are loaded."""
    if name == "Config":
        from rayqd.config import Config

        return Config
    if name == "Result":
        from rayqd.runs.result import Result

        return Result
    if name == "distill":
        from rayqd.commands.distill import distill

        return distill
    raise AttributeError(f"module 'rayqd' has no attribute {name!r}")
