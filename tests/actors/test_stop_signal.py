"""SIGTERM is what stops a job: it ends a run as Ctrl-C does, whether Ray is starting, has started, or gets it too."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from rayqd.commands.doctor_run import examine_run
from rayqd.config.resolved import to_toml
from rayqd.runs.record import read_run

STARTS_RAY = """
import os, signal, sys
import ray
from ray._private import node
from rayqd.actors.connection import connect
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


RUN = """
import functools, signal, sys
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # also where the tests run under nohup
import rayqd.cli
from rayqd.commands import distill
from rayqd.rollout.fake import FakeEngine
distill.distill = functools.partial(distill.distill, make_engine=functools.partial(FakeEngine, 128))
sys.exit(rayqd.cli.main(["distill", sys.argv[1]]))
"""


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.parametrize("driver_is_last", [False, True])
def test_sigterm_to_every_process_of_a_run_is_an_orderly_end(
    driver_is_last: bool, tiny_config: Any, tmp_path: Path
) -> None:
    """`timeout` and container runtimes send it to all. Ray's processes go on it, before the driver or after."""
    config = tiny_config(learner={"steps": 1000})
    file = tmp_path / "config.toml"
    file.write_text(to_toml(config))
    driver = subprocess.Popen(
        [sys.executable, "-c", RUN, f"@{file}"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    while not (config.run_dir / "checkpoints" / "step-000002").exists():
        assert driver.poll() is None, driver.communicate()[0]
        time.sleep(0.02)
    (controller,) = (each for each in psutil.Process(driver.pid).children(recursive=True) if is_controller(each))
    if driver_is_last:
        driver.send_signal(signal.SIGSTOP)
    os.killpg(driver.pid, signal.SIGTERM)
    if driver_is_last:
        controller.kill()  # on SIGTERM it may wait for the driver, or not
        controller.wait(timeout=60)
        driver.send_signal(signal.SIGCONT)
    output, _ = driver.communicate(timeout=90)
    lines = output.rstrip().splitlines()
    assert driver.returncode == 130, output
    assert lines[-1] == "rayqd: stopped; the same command goes on from the last checkpoint"
    assert "Traceback" not in output
    assert lines[-2].startswith("stopped without a checkpoint of the last step: " if driver_is_last else "stopped "), (
        output
    )
    assert read_run(config.run_dir).state == "stopped"


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.parametrize("how", ["hangup", "controller hangs"])
def test_whoever_goes_away_and_whatever_hangs_the_run_ends_in_order(how: str, tiny_config: Any, tmp_path: Path) -> None:
    """A terminal that goes away, and a controller that is stopped: nobody waits for it. tests/console has `| head`."""
    config = tiny_config(distill={"lmbda": 0.0}, learner={"steps": 1000}, checkpoint={"every": 5})
    file = tmp_path / "config.toml"
    file.write_text(to_toml(config))
    arguments = [sys.executable, "-c", RUN, f"@{file}"]
    with (tmp_path / "stderr").open("w") as complaints:
        driver = subprocess.Popen(
            arguments, stdout=subprocess.PIPE, stderr=complaints, text=True, start_new_session=True
        )
    assert driver.stdout
    while not (config.run_dir / "checkpoints" / "step-000005").exists():
        assert driver.poll() is None, (tmp_path / "stderr").read_text()
        time.sleep(0.02)
    if how == "hangup":
        driver.send_signal(signal.SIGHUP)
    else:
        (stopped,) = (each for each in psutil.Process(driver.pid).children(recursive=True) if is_controller(each))
        stopped.suspend()
        driver.send_signal(signal.SIGTERM)
    assert driver.wait(timeout=90) == 130, (tmp_path / "stderr").read_text()
    assert "Traceback" not in (tmp_path / "stderr").read_text()
    assert read_run(config.run_dir).state == "stopped"
    (done,) = {json.loads(line)["step"] for line in (config.run_dir / "audit.jsonl").read_text().splitlines()[-1:]}
    if how == "controller hangs":
        assert (
            driver.stdout.read()
            .splitlines()[-1]
            .startswith("stopped without a checkpoint of the last step: the controller did not answer for 6 s: ")
        )
    else:
        assert (config.run_dir / "checkpoints" / f"step-{done:06d}").is_dir()
        assert examine_run(config.run_dir) == 0


def is_controller(process: psutil.Process) -> bool:
    return process.name().startswith("ray::Controller")
