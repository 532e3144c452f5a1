"""All trackers of a run, in a thread of their own: whatever becomes of them, the run goes on."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from netrc import NetrcParseError, netrc
from queue import Queue
from urllib.parse import urlsplit

from rayqd.errors import ConfigError
from rayqd.events import EvalEvent, StepEvent, samples
from rayqd.trackers.libraries import LIBRARIES
from rayqd.trackers.tracker import Outcome, TrackedRun, Tracker, series_name

_LAST_SECONDS = 60.0  # that trackers have for what is left when the run ends
_Task = Callable[[Tracker], None]


def check_trackers(names: Sequence[str]) -> None:
    """Check that the libraries are there, and that Weights & Biases has a key. Raises ConfigError."""
    missing = [name for name in names if find_spec(name) is None]
    if missing:
        raise ConfigError(f'track: {missing[0]} is not installed: pip install "rayqd[{missing[0]}]", or leave it out')
    if "wandb" in names and not _wandb_has_key():
        raise ConfigError(
            "track: wandb has no key: set WANDB_API_KEY or run `wandb login`; WANDB_MODE=offline needs none"
        )


def _wandb_has_key() -> bool:
    """Return whether Weights & Biases would know who logs in, as it looks for that, or need not know."""
    if os.environ.get("WANDB_MODE") in ("offline", "disabled", "dryrun") or os.environ.get("WANDB_API_KEY"):
        return True
    host = urlsplit(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
    try:
        return netrc(os.environ.get("NETRC")).authenticators(host) is not None
    except (OSError, NetrcParseError):
        return False


class Trackers:
    """Tells each of them the same; one that fails is named once, and left out from then on."""

    def __init__(
        self,
        names: Sequence[str],
        run: TrackedRun | None,
        say: Callable[[str], None],
        libraries: Mapping[str, Callable[[TrackedRun], Tracker]] = LIBRARIES,
    ) -> None:
        """Begin `run` in the trackers called `names`, if any; `say` tells the user which one failed."""
        self._run = run
        self._say = say
        self._libraries = libraries
        self._open: dict[str, Tracker] = {}
        self._is_finished = False
        self._tasks: Queue[_Task | None] = Queue()
        self._complaints: Queue[str] = Queue()
        self._names = list(dict.fromkeys(names)) if run else []
        self._thread = threading.Thread(target=self._work, name="trackers", daemon=True)
        if self._names:
            self._thread.start()

    def record(self, event: StepEvent | EvalEvent) -> None:
        """Log an event's metrics; returns at once."""
        values = {series_name(sample): float(sample.value) for sample in samples(event)}
        self._put(lambda tracker: tracker.log(values, event.step))

    def finish(self, outcome: Outcome | None) -> None:
        """Log the outcome, None of a run that ended early, and wait a while for what is left; done once."""
        if not self._names or self._is_finished:
            return
        self._is_finished = True
        self._put(lambda tracker: tracker.finish(outcome))
        self._tasks.put(None)
        self._thread.join(_LAST_SECONDS)
        if self._thread.is_alive():
            self._complaints.put(f"trackers had not logged everything {_LAST_SECONDS:.0f} s after the end")
        self._complain()

    def _put(self, task: _Task) -> None:
        if self._names:
            self._tasks.put(task)
            self._complain()

    def _complain(self) -> None:
        """Tell what has failed meanwhile, in the caller's thread."""
        while not self._complaints.empty():
            self._say(self._complaints.get())

    def _work(self) -> None:
        assert self._run is not None
        for name in self._names:
            self._try(name, lambda name=name, run=self._run: self._open.update({name: self._libraries[name](run)}))
        while (task := self._tasks.get()) is not None:
            for name, tracker in list(self._open.items()):
                self._try(name, lambda tracker=tracker, task=task: task(tracker))

    def _try(self, name: str, call: Callable[[], object]) -> None:
        try:
            call()
        except Exception as error:  # noqa: BLE001  # a library's own, of any kind: it must not end the run
            self._open.pop(name, None)
            words = " ".join(str(error).split())[:200]
            self._complaints.put(f"track: {name} failed ({type(error).__name__}: {words}); the run goes on without it")
