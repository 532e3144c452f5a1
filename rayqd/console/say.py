"""A line of plain text on the terminal."""

from __future__ import annotations

from rich.console import Console


def say(console: Console, text: str) -> None:
    """Print `text` as it is: no markup in it, no colours for its numbers, and no line breaks that it has not got."""
    console.print(text, markup=False, highlight=False, soft_wrap=True)
