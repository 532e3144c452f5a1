"""A contender's process: what it takes, and that nothing of it stays."""

import signal
import sys
import time
from pathlib import Path

import pytest

from rayqd.bench.head_to_head import process_watch
from rayqd.bench.head_to_head.contender_process import last_line, run_contender
from rayqd.bench.head_to_head.process_watch import descendants
from rayqd.cli.bench import COMMAND


def test_memory_is_that_of_the_whole_family(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process_watch, "_PERIOD_SECONDS", 0.1)
    code = "import subprocess, sys, time; x = bytearray(200_000_000); x[::4096] = b'1' * len(x[::4096]); time.sleep(2)"
    command = [sys.executable, "-c", f"import subprocess, sys; subprocess.run([sys.executable, '-c', {code!r}])"]
    end = run_contender(command, tmp_path / "log", {}, limit_seconds=60)
    assert end.exit_code == 0
    assert end.peak_bytes is not None
    assert 200_000_000 < end.peak_bytes < 600_000_000
    assert 0 < end.cpu.used[-1] < 60
    assert 1 not in descendants(2**22 + 1)


def test_what_a_contender_leaves_running_is_ended_with_it(tmp_path: Path) -> None:
    code = "import subprocess, sys; print(subprocess.Popen(['sleep', '60']).pid)"
    run_contender([sys.executable, "-c", code], tmp_path / "log", {"PATH": "/usr/bin:/bin"}, limit_seconds=30)
    stat = Path(f"/proc/{int((tmp_path / 'log').read_text())}/stat")
    for _ in range(100):
        if not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] == "Z":
            return
        time.sleep(0.1)
    pytest.fail("it went on")


def test_a_stop_ends_the_contender_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert COMMAND.when_stopped  # SIGTERM, too, is then a KeyboardInterrupt
    monkeypatch.setattr(signal, "SIGINT", signal.SIGTERM)  # as in a shell's background, where the former is ignored
    before = signal.signal(signal.SIGALRM, signal.default_int_handler)
    signal.setitimer(signal.ITIMER_REAL, 2)
    try:
        with pytest.raises(KeyboardInterrupt):
            run_contender(["sh", "-c", "echo $$; sleep 60"], tmp_path / "log", {"PATH": "/bin"}, limit_seconds=60)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert not Path(f"/proc/{int((tmp_path / 'log').read_text())}").exists()


def test_the_line_of_an_error_is_found_before_what_follows_it(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("a\ntorch.OutOfMemoryError: CUDA out of memory. Tried\n  frame\n[rank0]:[W] destroy_process_group\n")
    assert last_line(log) == "torch.OutOfMemoryError: CUDA out of memory. Tried"
    log.write_text("one\ntwo\n\n")
    assert last_line(log) == "two"
