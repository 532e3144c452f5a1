"""A comparison's file: ordinary settings, a section [compare], and in [compare.arms] what is compared."""

from rayqd.config.comparison.arms import KINDS, ArmSpec, Kind
from rayqd.config.comparison.fields import comparison_group
from rayqd.config.comparison.load import ComparisonSpec, comparison_help, comparison_of, load_comparison

__all__ = [
    "KINDS",
    "ArmSpec",
    "ComparisonSpec",
    "Kind",
    "comparison_group",
    "comparison_help",
    "comparison_of",
    "load_comparison",
]
