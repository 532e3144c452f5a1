"""The learner's part of a run in its storage: `start/`, the newest checkpoints, `export/`."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock

from rayqd.checksums import find_damage
from rayqd.errors import DamagedStorageError, StorageError
from rayqd.files import remove_directory
from rayqd.learner.checkpoint import Checkpoints, best_step_of, step_of
from rayqd.runs.paths import CHECKPOINTS, EXPORT, FETCH_LOCK, START
from rayqd.runs.storage.background import BackgroundUpload
from rayqd.runs.storage.folder import Folder
from rayqd.runs.storage.watched import Patience

_ATTEMPTS = 3  # at the end, when no later checkpoint will try again


class CheckpointUploader:
    """Keeps the storage like this node's directory of the run, and before that the directory like the storage.

    What is uploaded is whatever the storage lacks, so a failed upload is made good by the next one. Nobody waits for
    one before the run's end, or its stop.
    """

    def __init__(
        self,
        folder: Folder,
        run_dir: Path,
        checkpoints: Checkpoints,
        tell: Callable[[str], None],
        patience: Patience | None = None,
    ) -> None:
        """Know where the run is, and whom to `tell` what the user should know; `patience` is the folder's."""
        self._folder = folder
        self._stored = folder.inside(CHECKPOINTS)
        self._run_dir = run_dir
        self._checkpoints = checkpoints
        self._tell = tell
        self._patience = patience
        self._background = BackgroundUpload(self._upload, self._tell_failure)
        self._known: set[str] = set()  # what the storage has

    def fetch(self, *, is_rank0: bool) -> None:
        """Get what this node lacks, so that every worker starts from the same checkpoint. Raises StorageError.

        Rank 0 must have done so before the others begin: it may have a checkpoint that never reached the
        storage, and uploads it; to any other such a checkpoint is one that the run has forgotten.
        """
        self._run_dir.mkdir(parents=True, exist_ok=True)
        with FileLock(self._run_dir / FETCH_LOCK):  # workers on one node share the directory
            if is_rank0:
                self._folder.check_rights()
            for line in self._checkpoints.set_damaged_aside():
                self._tell(line)
            if not (self._run_dir / START).is_dir() and START in self._folder.directories():
                self._get(self._folder, START, self._run_dir / START)
            newest = self._get_newest()
            self._get_best()
            ahead = [step for step in self._checkpoints.steps() if step > newest]
            if ahead and is_rank0:
                self._upload()
                return
            for step in ahead:
                remove_directory(self._checkpoints.path(step))

    def _get_newest(self) -> int:
        """Get the newest checkpoint of the storage that is whole, where this node lacks it; return its step, or 0."""
        for step in sorted(self._stored_steps(), reverse=True):
            path = self._checkpoints.path(step)
            if path.is_dir() or self._get(self._stored, path.name, path):
                return step
        return 0

    def _get_best(self) -> None:
        """Get the weights that were the best, where this node lacks them."""
        for name in self._stored.directories():
            step = best_step_of(name)
            if step is not None and not self._checkpoints.best_path(step).is_dir():
                self._get(self._stored, name, self._checkpoints.best_path(step))

    def _get(self, folder: Folder, name: str, path: Path) -> bool:
        """Download a directory; where it is damaged, put it aside in the storage, tell so, and return False."""
        try:
            folder.get(name, path)
            if (fault := find_damage(path)) is not None:
                remove_directory(path)
                raise DamagedStorageError(f"{folder}/{name}: {fault}")
        except DamagedStorageError as error:
            folder.disown(name)
            self._tell(f"{error}; it counts as absent from now on")
            return False
        return True

    def update(self) -> None:
        """Have what the storage lacks uploaded, and what is not kept any more removed; returns at once."""
        self._background.request()

    def flush(self) -> None:
        """Return when that is done, or gets nowhere: the run is being stopped."""
        if self._patience:
            self._patience.end()
        self.wait()

    def wait(self) -> None:
        """Return when that is done, or has failed."""
        self._background.wait()

    def _tell_failure(self, failure: str) -> None:
        self._tell(f"{failure}; it is kept in {self._run_dir}, and the next checkpoint tries again")

    def finish(self) -> None:
        """Upload the rest and the export. Raises StorageError when that fails again and again."""
        self.wait()
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                self._upload()
                self._folder.put(self._run_dir / EXPORT, EXPORT)
                self._known.add(EXPORT)
            except (StorageError, OSError) as error:  # of the storage, or of this machine's disk
                if attempt == _ATTEMPTS:
                    lacking = f"; it lacks {', '.join(self._lacking())}" if self._lacking() else ""
                    raise StorageError(f"{error}{lacking}; mend that, and the same command finishes the run") from error
                time.sleep(2.0**attempt)
            else:
                return

    def _upload(self) -> None:
        if (self._run_dir / START).is_dir() and START not in self._folder.directories():
            self._folder.put(self._run_dir / START, START)
        own = self._checkpoints.steps()
        self._checkpoints.held = own[-1:]  # training goes on, and removes the others sooner than they are uploaded
        try:
            stored = self._stored_steps()
            for step in reversed(own):
                if step not in stored:
                    self._put(self._checkpoints.path(step))
                self._known.add(f"{CHECKPOINTS}/{self._checkpoints.path(step).name}")
            self._upload_best()
        finally:
            self._checkpoints.held = ()
            self._checkpoints.forget_old()
        for step in stored:
            if own and step not in own and step < own[-1]:
                self._stored.remove(self._checkpoints.path(step).name)

    def _upload_best(self) -> None:
        own = {self._checkpoints.best_path(step).name for step in self._checkpoints.best_steps()}
        stored = {name for name in self._stored.directories() if best_step_of(name) is not None}
        for name in own - stored:
            self._put(self._checkpoints.directory / name)
        for name in stored - own if own else ():
            self._stored.remove(name)

    def _put(self, path: Path) -> None:
        """Upload a checkpoint, or best weights, unless they give way to newer ones meanwhile.

        Of those that do, what was found may be half, with a manifest of just that.
        """
        try:
            self._stored.put(path, path.name)
        except StorageError:
            if path.is_dir():
                raise
        if not path.is_dir():
            self._stored.remove(path.name)

    def _lacking(self) -> list[str]:
        """Return what the storage is not known to have."""
        names = [f"{CHECKPOINTS}/{self._checkpoints.path(step).name}" for step in self._checkpoints.steps()]
        return [name for name in (*names, EXPORT) if name not in self._known]

    def _stored_steps(self) -> list[int]:
        return [step for name in self._stored.directories() if (step := step_of(name)) is not None]
