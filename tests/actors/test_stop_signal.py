"""SIGTERM is what stops a job: it ends a run as Ctrl-C does, whether Ray is starting or has started."""

import subprocess
import sys

import pytest

STARTS_RAY = """
import os, signal, sys
import ray
from ray._private import node
from rayqd.actors.cluster import connect
from rayqd.config import Config

when = sys.argv[1]
signal.signal(signal.SIGTERM, signal.default_int_handler)
if when == "starting":
    start = node.Node.start_ray_processes  # Ray has put its own handler by then
    def stopped_in_the_middle(*args):
        start(*args)
        os.kill(os.getpid(), signal.SIGTERM)
    node.Node.start_ray_processes = stopped_in_the_middle
try:
    with connect(Config()):
        assert when == "started"
        os.kill(os.getpid(), signal.SIGTERM)
except KeyboardInterrupt:
    print("as Ctrl-C", signal.getsignal(signal.SIGTERM) is signal.default_int_handler)
"""


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.parametrize("when", ["starting", "started"])
def test_sigterm_is_an_orderly_end(when: str) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", STARTS_RAY, when], capture_output=True, text=True, timeout=120, check=False
    )
    assert (ended.returncode, ended.stdout) == (0, "as Ctrl-C True\n"), ended.stderr
