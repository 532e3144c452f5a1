"""Which versions are installed."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version


def installed_version(name: str) -> str | None:
    """Return the version of a distribution; None where it is not installed, as a checkout on PYTHONPATH is not."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None
