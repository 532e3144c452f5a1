"""Uploads beside the work that makes what is uploaded."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor


class BackgroundUpload:
    """Does `upload` in a thread of its own whenever it is asked to, one at a time."""

    def __init__(self, upload: Callable[[], None]) -> None:
        """Do nothing yet."""
        self._upload = upload
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="upload")
        self._last: Future[None] | None = None

    def request(self) -> None:
        """Have it done, and return at once; what is under way is done again."""
        if self._last is None or self._last.running() or self._last.done():  # else one is to begin anyway
            self._last = self._thread.submit(self._upload)

    def wait(self) -> None:
        """Return when nothing is to be done any more; raises what `upload` raised the last time."""
        if self._last:
            self._last.result()
