"""What somebody may have meant by a name that is not there."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def nearest(name: str, there: Iterable[str], *, likeness: float = 0.6) -> str | None:
    """Return the one of `there` that looks most like `name`; None where none does so by `likeness`, of 0 to 1."""
    found = difflib.get_close_matches(name, list(there), n=1, cutoff=likeness)
    return found[0] if found else None


def no_such(what: str, name: str, there: Iterable[str]) -> str:
    """Format `there is no split "trian": did you mean train? give one of train, test`."""
    names = list(there)
    near = nearest(name, names)
    hint = f"did you mean {near}? " if near else ""
    return f'there is no {what} "{name}": {hint}give one of {", ".join(names)}'
