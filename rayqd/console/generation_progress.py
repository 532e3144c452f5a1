"""How far a model is with its completions."""

from __future__ import annotations

import time

from rayqd.console.progress import Progress, duration

_PLAIN_SECONDS = 30.0  # between lines where there is no terminal


class GenerationProgress:
    """A line that changes in a terminal, elsewhere a line now and then: `120/200 answers  tok/s 312  eta 0:21`."""

    def __init__(self, progress: Progress, num_completions: int, num_before: int = 0) -> None:
        """`num_before` of `num_completions` were there already."""
        self._progress = progress
        self._num_completions = num_completions
        self._num_left = num_completions - num_before
        self._began = time.monotonic()
        self._said = self._began
        self.num_written = 0
        self.num_tokens = 0

    @property
    def seconds(self) -> float:
        """Return the seconds since the first."""
        return time.monotonic() - self._began

    def written(self, num_tokens: int) -> None:
        """Count one more completion, of `num_tokens`."""
        self.num_written += 1
        self.num_tokens += num_tokens
        line = self._line()
        self._progress.status(line)
        if not self._progress.console.is_terminal and time.monotonic() - self._said > _PLAIN_SECONDS:
            self._said = time.monotonic()
            self._progress.say(line)

    def _line(self) -> str:
        seconds = max(self.seconds, 1e-9)
        left = self._num_left - self.num_written
        return (
            f"{self._num_completions - left:,}/{self._num_completions:,} answers"
            f"  tok/s {self.num_tokens / seconds:,.0f}"
            f"  eta {duration(seconds / self.num_written * left)}"
        )
