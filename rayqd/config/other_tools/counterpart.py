"""What takes the place of another tool's setting."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Counterpart:
    """What takes the place of another tool's setting."""

    settings: tuple[str, ...] = ()  # keys, of which the first is the likeliest
    note: str = ""  # what differs, or why there is none

    def __str__(self) -> str:
        """Write `rayqd's name for it is learner.lr: ...`, or the note where there is no such setting."""
        name = f"rayqd's name for it is {' or '.join(self.settings)}" if self.settings else ""
        return ": ".join(part for part in (name, self.note) if part)
