"""A line of plain text on the terminal."""

from __future__ import annotations

import errno
import textwrap

from rich.console import Console

_LEAST_WIDTH = 40  # of sentences


class ReaderGone(KeyboardInterrupt):
    """Nobody reads what is printed any more; raised once."""


def say(console: Console, text: str) -> None:
    """Print `text` as it is: no markup in it, no colours for its numbers, and no line breaks that it has not got.

    Raises ReaderGone, a KeyboardInterrupt, once nobody reads it any more, because the terminal or the pipe is closed;
    from then on the console is silent.
    """
    try:
        console.print(text, markup=False, highlight=False, soft_wrap=True)
    except (SystemExit, OSError) as error:  # the former is how rich ends a program whose pipe is closed
        if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):  # of a file, and the run itself can go on
            return
        console.quiet = True
        raise ReaderGone from None


def wrap(text: str, width: int) -> list[str]:
    """Return lines of at most `width` characters; they break at spaces alone, since names have hyphens in them."""
    return textwrap.wrap(text, max(width, _LEAST_WIDTH), break_long_words=False, break_on_hyphens=False)
