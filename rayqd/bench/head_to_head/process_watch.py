"""Memory and CPU time of a process with all its descendants, looked at from outside while it runs."""

from __future__ import annotations

import bisect
import contextlib
import itertools
import os
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from rayqd.bench.head_to_head.device import used_gpu_bytes

_PERIOD_SECONDS = 1.0
_MEMORY_EVERY = 5  # looks: of a machine's memory a look takes long
_TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class CpuClock:
    """CPU time by the wall's: what cores really did, however many others wanted them."""

    times: Sequence[float]  # seconds since the epoch, rising
    used: Sequence[float]  # seconds of CPU by then

    def between(self, began: float, ended: float) -> float | None:
        """Return the seconds used between two times; None where one of them was not looked at."""
        before, after = self._at(began), self._at(ended)
        return None if before is None or after is None else after - before

    def _at(self, moment: float) -> float | None:
        index = bisect.bisect_left(self.times, moment)
        if index == 0 or index == len(self.times):
            return None
        (t0, t1), (u0, u1) = self.times[index - 1 : index + 1], self.used[index - 1 : index + 1]
        return u0 + (u1 - u0) * (moment - t0) / (t1 - t0)


class ProcessWatch:
    """Looks every few seconds, until its `with` ends; a GPU's memory is counted beyond what was held before."""

    def __init__(self, pid: int, *, on_gpu: bool) -> None:
        self._pid = pid
        self._on_gpu = on_gpu
        self._before = used_gpu_bytes() if on_gpu else 0
        self._peak = 0
        self._times: list[float] = []
        self._used: list[float] = []
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    @property
    def peak_bytes(self) -> int | None:
        """Return the most that was held; None where nothing could be read."""
        return self._peak or None

    @property
    def cpu(self) -> CpuClock:
        """Return the CPU time that was used, by the wall's."""
        return CpuClock(tuple(self._times), tuple(self._used))

    def __enter__(self) -> ProcessWatch:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        seen: dict[int, float] = {}  # what each process had used when it was last seen: ended ones count, too
        for number in itertools.count():
            if self._ended.wait(_PERIOD_SECONDS):
                return
            family = descendants(self._pid)
            for pid in family:
                seen[pid] = max(seen.get(pid, 0.0), _cpu_seconds(pid))
            self._times.append(time.time())
            self._used.append(sum(seen.values()))
            if number % _MEMORY_EVERY == 0:
                self._peak = max(self._peak, self._held(family))

    def _held(self, family: set[int]) -> int:
        if not self._on_gpu:
            return sum(_own_bytes(pid) for pid in family)
        used = used_gpu_bytes()
        return 0 if used is None or self._before is None else used - self._before


def descendants(pid: int) -> set[int]:
    """Return `pid` and every process that comes from it."""
    children: dict[int, list[int]] = {}
    for directory in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, ValueError, IndexError):
            children.setdefault(int(_stat(int(directory.name))[1]), []).append(int(directory.name))
    found, ahead = {pid}, [pid]
    while ahead:
        new = set(children.get(ahead.pop(), ())) - found
        found |= new
        ahead += new
    return found


def _stat(pid: int) -> list[str]:
    """Return what /proc says of a process, from its state on. Raises OSError where there is none."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def _cpu_seconds(pid: int) -> float:
    """Return the seconds that the process itself has used, in its code and in the system's."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        fields = _stat(pid)
        return (int(fields[11]) + int(fields[12])) / _TICKS_PER_SECOND
    return 0.0


def _own_bytes(pid: int) -> int:
    """Return the process's share of memory, in which pages that several have are divided among them."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    return 0
