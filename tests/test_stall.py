"""A process whose work stands still ends itself and leaves word, even where Python's lock is never given back."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from rayqd.stall import StallWatch, read_stall

# sleep() of the C library, called without giving Python's lock back: as a kernel's launch that waits would
HOLD_THE_LOCK = """
import ctypes, sys
from pathlib import Path
from rayqd.stall import StallWatch
def spin():
    ctypes.PyDLL(None).sleep(60)
watch = StallWatch(Path(sys.argv[1]), 0.3)
with watch.working():
    watch.beat()
    spin()
"""
WAIT_OUTSIDE = """
import sys, time
from pathlib import Path
from rayqd.stall import StallWatch
watch = StallWatch(Path(sys.argv[1]), 0.3)
watch.beat()
with watch.working(is_first=True):
    time.sleep(0.6)  # less than four times as much
time.sleep(1)
with watch.working():
    for _ in range(10):
        time.sleep(0.1)
        watch.beat()
print("done")
"""

COMPUTE = """
import sys, time
from pathlib import Path
from rayqd.stall import StallWatch
def spin(seconds):  # of work, however many others the cores have
    end = time.process_time() + seconds
    while time.process_time() < end: pass
watch = StallWatch(Path(sys.argv[1]), 2.0)
with watch.computing():
    spin(2.5)
    with watch.working():
        watch.beat()
print("done", flush=True)
with watch.computing():
    HANG
"""


def run(code: str, file: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code, str(file)], capture_output=True, text=True, timeout=50)


@pytest.mark.slow
def test_it_ends_itself_while_python_itself_cannot_run(tmp_path: Path) -> None:
    done = run(HOLD_THE_LOCK, tmp_path / "stall.txt")
    assert done.returncode == 1
    assert read_stall(tmp_path / "stall.txt").startswith("<string>:6 spin, <string>:10 <module>")


@pytest.mark.slow
def test_time_without_work_and_time_with_tokens_do_not_count(tmp_path: Path) -> None:
    done = run(WAIT_OUTSIDE, tmp_path / "stall.txt")
    assert (done.returncode, done.stdout) == (0, "done\n")
    assert read_stall(tmp_path / "stall.txt") == ""


@pytest.mark.slow
@pytest.mark.parametrize(
    "hang",
    ["time.sleep(50)", "with watch.working(): spin(50)"],
)
def test_the_hosts_work_counts_by_its_time_alone_and_a_wait_or_a_spin_for_a_device_does_not(
    hang: str, tmp_path: Path
) -> None:
    done = run(COMPUTE.replace("HANG", hang), tmp_path / "stall.txt")
    assert (done.returncode, done.stdout) == (1, "done\n")
    assert read_stall(tmp_path / "stall.txt").endswith("<string>:15 <module>")


def test_of_several_threads_the_one_at_work_is_told(tmp_path: Path) -> None:
    (tmp_path / "stall.txt").write_text(
        "Timeout (0:05:00)!\n"
        "Thread 0x00007f (most recent call first):\n"
        '  File "/usr/lib/python3.11/threading.py", line 320 in wait\n'
        "\n"
        "Thread 0x00007e (most recent call first):\n"
        '  File "/site-packages/torch/cuda/__init__.py", line 1040 in synchronize\n'
        '  File "/site-packages/vllm/v1/engine/core.py", line 400 in step\n'
        '  File "/site-packages/vllm/v1/engine/llm_engine.py", line 200 in step\n'
        '  File "/site-packages/rayqd/rollout/vllm.py", line 160 in _finish\n'
    )
    told = "__init__.py:1040 synchronize, core.py:400 step, llm_engine.py:200 step, vllm.py:160 _finish"
    assert read_stall(tmp_path / "stall.txt") == told


def test_without_a_stall_there_is_nothing_to_tell(tmp_path: Path) -> None:
    assert read_stall(tmp_path / "nothing.txt") == ""
    watch = StallWatch(tmp_path / "stall.txt", 100)
    with watch.working():
        watch.beat()
    assert read_stall(tmp_path / "stall.txt") == ""
