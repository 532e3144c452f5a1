"""A sweep file: ordinary settings, a section [sweep], and in [sweep.over] the settings that its trials differ in."""

from rayqd.config.sweep.load import SweepSpec, load_sweep, sweep_of
from rayqd.config.sweep.resolved import sweep_differences, sweep_help, sweep_toml

__all__ = ["SweepSpec", "load_sweep", "sweep_differences", "sweep_help", "sweep_of", "sweep_toml"]
