"""The driver's part of a run in its storage, kept up to date beside the run."""

from __future__ import annotations

from pathlib import Path

from rayqd.errors import StorageError
from rayqd.runs.storage.background import BackgroundUpload
from rayqd.runs.storage.stored_run import StoredRun


class Mirror:
    """Brings the storage up to a run's directory; does nothing where there is no storage."""

    def __init__(self, run_dir: Path, stored: StoredRun | None = None) -> None:
        """Know both, and touch nothing."""
        self._run_dir = run_dir
        self._stored = stored
        self._background = BackgroundUpload(self._upload_beside, self._note)
        self._failure: str | None = None  # of the last upload that went on beside the run

    def begin_upload(self) -> str | None:
        """Upload while the run goes on; return a line for the user where an earlier upload failed."""
        failure, self._failure = self._failure, None
        if self._stored:
            self._background.request()
        return self._describe(failure, "the next checkpoint") if failure else None

    def upload_last(self) -> str | None:
        """Upload where no checkpoint comes any more; return a line for the user where that failed."""
        try:
            self.upload()
        except (StorageError, OSError) as error:  # of the storage, or of this machine's disk
            return self._describe(str(error), "the same command")
        return None

    def upload(self, *, export: bool = False) -> None:
        """Upload; `export` when the run has finished. Raises StorageError."""
        self._background.wait()
        if self._stored:
            self._stored.upload(self._run_dir)
        if self._stored and export:
            self._stored.upload_figures(self._run_dir)
            self._stored.upload_export(self._run_dir)

    def hurry(self) -> None:
        """Wait for a storage in which nothing moves no longer than a stop may take."""
        if self._stored:
            self._stored.patience.end()

    def _upload_beside(self) -> None:
        assert self._stored is not None
        self._stored.upload(self._run_dir)

    def _note(self, failure: str) -> None:
        self._failure = failure

    def _describe(self, failure: str, who: str) -> str:
        return f"{failure}; it is kept in {self._run_dir}, and {who} tries again"
