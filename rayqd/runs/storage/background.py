"""Uploads beside the work that makes what is uploaded."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

from rayqd.errors import StorageError


class BackgroundUpload:
    """Does `upload` in a thread of its own whenever it is asked to, one at a time."""

    def __init__(self, upload: Callable[[], None], on_failure: Callable[[str], None]) -> None:
        """Do nothing yet; `on_failure` is told, in that thread and in one line, why an upload broke off."""
        self._upload = upload
        self._on_failure = on_failure
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="upload")
        self._last: Future[None] | None = None

    def request(self) -> None:
        """Have it done, and return at once; what is under way is done again."""
        if self._last is None or self._last.running() or self._last.done():  # else one is to begin anyway
            self._last = self._thread.submit(self._try)

    def wait(self) -> None:
        """Return when nothing is to be done any more, or has failed."""
        if self._last:
            self._last.result()

    def _try(self) -> None:
        try:
            self._upload()
        except StorageError as error:
            self._on_failure(str(error))
        except Exception as error:  # noqa: BLE001 (nobody else would hear of it, and the next upload may succeed)
            self._on_failure(f"an upload broke off: {type(error).__name__}: {' '.join(str(error).split())}")
