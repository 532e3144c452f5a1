"""Distil a language model into its own INT4 self.

result = rayqd.distill(rayqd.Config(name="mine", model={"name": "smollm2-135m"}, quant={"group_size": 64}))
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rayqd.config import Config
    from rayqd.run import Result, distill

__all__ = ["Config", "Result", "distill"]


def __getattr__(name: str) -> Any:
    """Imported when asked for: the command line must answer before torch and Ray are loaded."""
    if name == "Config":
        from rayqd.config import Config

        return Config
    if name in ("Result", "distill"):
        import rayqd.run

        return getattr(rayqd.run, name)
    raise AttributeError(f"module 'rayqd' has no attribute {name!r}")
