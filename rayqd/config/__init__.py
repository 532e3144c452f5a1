from rayqd.config.load import load_config
from rayqd.config.resolved import differences, to_toml
from rayqd.config.sections import Config

__all__ = ["Config", "differences", "load_config", "to_toml"]
