"""Signs of life: what every process of a run leaves in Ray's own key-value store, and who looks whether it goes on.

A process that works and gets nowhere ends itself (`rayqd.stall`). One that is stopped as a whole cannot: another one
has to see that it falls silent, which is not the same as slow, since a thread beside the work gives the signs.
"""

# pyright: reportPrivateUsage=false, reportUnknownMemberType=false
# Ray's signatures are partly without types, and its store for small things has no public name.

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

import psutil
import ray
from ray.exceptions import RayError
from ray.experimental import internal_kv
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from rayqd.actors.topology import find_log_dir

_NAMESPACE = "rayqd-pulse"
_BEAT_SECONDS = 1.0
_MOST_BETWEEN_LOOKS = 5.0  # more is not counted: who looks was away itself, or nobody asked
_DUMP_SECONDS = 10.0
_STATE, _START_TIME = 3, 22  # fields of /proc/PID/stat, as proc(5) counts them
_END_SECONDS = 20.0  # for a task of Ray's on another node


@dataclass(frozen=True, slots=True, kw_only=True)
class Sign:
    """What a process says of itself."""

    node: str
    pid: int
    began: float  # seconds, see `start_of`: numbers of processes come again
    beats: int

    @property
    def process(self) -> tuple[str, int, float]:
        """Whose sign it is."""
        return self.node, self.pid, self.began


def give_signs(name: str) -> None:
    """Start a thread that gives a sign of this process under `name` every second, as long as it lives."""
    node, pid = ray.get_runtime_context().get_node_id(), os.getpid()
    began = start_of(pid)

    def beat() -> None:
        beats = 0
        while True:
            beats += 1
            with contextlib.suppress(RayError, RuntimeError):  # Ray's store may be away for a while
                _write(name, Sign(node=node, pid=pid, began=began, beats=beats))
            time.sleep(_BEAT_SECONDS)

    threading.Thread(target=beat, name="pulse", daemon=True).start()


def start_of(pid: int) -> float:
    """Return when a process of this machine began, in seconds since the machine did: no step of the clock changes that.

    Where there is no /proc it is since the epoch. Raises psutil.Error where the process is gone.
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return psutil.Process(pid).create_time()
    ticks = stat.rpartition(")")[2].split()[_START_TIME - _STATE]  # the name before it may have spaces
    return int(ticks) / os.sysconf("SC_CLK_TCK")


def read_sign(name: str) -> Sign | None:
    """Return the last sign under `name`; None where there is none, or nobody can tell."""
    try:
        text: bytes | None = internal_kv._internal_kv_get(name, namespace=_NAMESPACE)
    except (RayError, RuntimeError):
        return None
    return Sign(**json.loads(text)) if text else None


def _write(name: str, sign: Sign) -> None:
    internal_kv._internal_kv_put(name, json.dumps(asdict(sign)), namespace=_NAMESPACE)


@dataclass
class Silence:
    """How long one process has been silent, while somebody looked."""

    sign: Sign | None = None
    seconds: float = 0.0
    disregarded: set[tuple[str, int, float]] = field(default_factory=set[tuple[str, int, float]])
    _looked: float = 0.0

    def look(self, sign: Sign | None) -> float:
        """Take note of its last `sign`, and return for how many seconds there was no new one."""
        now = time.monotonic()
        if sign is None or sign.process in self.disregarded or sign != self.sign:
            self.seconds = 0.0
        else:
            self.seconds += min(now - self._looked, _MOST_BETWEEN_LOOKS)
        self.sign, self._looked = sign, now
        return self.seconds

    def disregard(self) -> None:
        """Expect nothing more of the process that gave the last sign: it is gone, or is to go."""
        if self.sign is not None:
            self.disregarded.add(self.sign.process)
        self.seconds = 0.0


def end_silent(sign: Sign, name: str) -> str:
    """End the process that gave `sign`, on whatever node it is; return in a few words in what state it was.

    Its threads' stacks go into the log of its node before, as `rayqd-NAME-stacks-PID.txt`, where py-spy is there to
    read them: a process that is stopped cannot tell them itself.
    """
    if sign.node == ray.get_runtime_context().get_node_id():
        return _end(sign, name)
    try:
        affinity = NodeAffinitySchedulingStrategy(sign.node, soft=False)
        task = ray.remote(_end).options(num_cpus=0, max_retries=0, scheduling_strategy=affinity)
        return ray.get(task.remote(sign, name), timeout=_END_SECONDS)
    except RayError:  # its node does not answer either
        return "its node does not answer"


def _end(sign: Sign, name: str) -> str:
    try:
        process = psutil.Process(sign.pid)
        if abs(start_of(sign.pid) - sign.began) > 1:
            return "its process is gone"
        state = _describe(is_stopped=process.status() == psutil.STATUS_STOPPED, has_stacks=dump_stacks(sign.pid, name))
        process.kill()
    except psutil.Error:
        return "its process is gone"
    return state


def dump_stacks(pid: int, name: str) -> bool:
    """Write the stacks of a process of this node into Ray's logs by py-spy; False where that is not there or may not.

    `name` is that of the actor in the run, `mine/rollout-0`.
    """
    beside = Path(sys.executable).with_name("py-spy")
    spy = str(beside) if beside.exists() else shutil.which("py-spy")
    if spy is None:
        return False
    command = [spy, "dump", "--nonblocking", "--pid", str(pid)]
    try:
        told = subprocess.run(command, capture_output=True, timeout=_DUMP_SECONDS, check=True)
        file = find_log_dir() / f"rayqd-{name.replace('/', '-')}-stacks-{pid}.txt"
        file.write_bytes(told.stdout)
    except (OSError, subprocess.SubprocessError):
        return False
    return True


def end_process(pid: int | None) -> None:
    """End an actor's process on this node, if it is still there."""
    with contextlib.suppress(psutil.Error):
        if pid is not None and (process := psutil.Process(pid)).name().startswith("ray::"):
            process.kill()


def describe_silent(pid: int | None, name: str) -> str:
    """Return in what state an actor's process on this node is that does not answer, once its stacks are written.

    Without py-spy it writes them itself, if it said that it would and is not stopped.
    """
    with contextlib.suppress(psutil.Error, OSError):
        if pid is not None and (process := psutil.Process(pid)).name().startswith("ray::"):
            is_stopped = process.status() == psutil.STATUS_STOPPED
            has_stacks = dump_stacks(pid, name)
            if not has_stacks and not is_stopped:
                os.kill(pid, signal.SIGUSR1)
            return _describe(is_stopped=is_stopped, has_stacks=has_stacks or not is_stopped)
    return "its process is gone"


def _describe(*, is_stopped: bool, has_stacks: bool) -> str:
    state = "its process is stopped" if is_stopped else "its process hangs"
    return f"{state}, {'its stacks are in' if has_stacks else 'which leaves no stacks in'} Ray's logs"
