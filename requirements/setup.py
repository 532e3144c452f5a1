"""Makes .venv with what a CPU machine needs to run rayqd, or also to test it. requirements/setup.sh calls it.

    requirements/setup.sh run      what `make quickstart` needs
    requirements/setup.sh dev      the rest, for `make test` and `make check`

It looks for what would fail before it downloads anything, and goes on where it was interrupted.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from install import PIP, PYTHON, ROOT, InstallError, Pin, explain, install, missing, read_pins, say, site_packages

VENV = ROOT / ".venv"
DOWNLOADS_MB = 600  # that pip unpacks at a time, in TMPDIR
COMPILED = 1.25  # of the packages' size: with what Python compiles of them
MACHINES = ("x86_64", "aarch64")
PROGRAMS = (  # which leave compiled what a run needs; two at a time, which share most of what they import
    "import rayqd.commands.distill, rayqd.actors.learner, rayqd.learner.worker, rayqd.model.qat_lora\n"
    "import transformers.models.llama.modeling_llama\n" + (ROOT / "requirements" / "compile_kernels.py").read_text(),
    "import vllm.entrypoints.llm, vllm.model_executor.models.llama",
)


def main(argv: Sequence[str]) -> int:
    """Set up `run` or `dev`; the exit code is 1 with one line on stderr where something is in the way."""
    parts = ["run", "dev"] if argv[1:] == ["dev"] else ["run"]
    files = [ROOT / "requirements" / f"{part}.txt" for part in parts]
    try:
        pins = read_pins(files, platform.machine())
        for problem in problems(pins):
            raise InstallError(problem)
        for note in notes():
            say(note)
        make_venv()
        todo = missing(pins, site_packages())
        if todo:
            check_index(todo)
        say(f"[2/3] {len(todo)} packages, {sum(pin.megabytes for pin in todo):,} MB on disk")
        install(pins, "[2/3]")
        if todo:
            compile_imported()
    except InstallError as error:
        print(f"setup: failed: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("setup: stopped; the same command goes on from here", file=sys.stderr)
        return 130
    say("done; next: make quickstart, or .venv/bin/rayqd doctor")
    return 0


def problems(pins: Sequence[Pin]) -> Iterator[str]:
    """Yield what cannot go well on this machine."""
    if sys.version_info >= (3, 14):
        yield (
            f"Python {platform.python_version()} is too new for the pinned packages, which are for 3.11 to 3.13: "
            "make setup PYTHON=/path/to/python3.12"
        )
    if platform.system() != "Linux":
        yield f"the pinned packages are for Linux, this is {platform.system()}: use a container or a Linux machine"
    if platform.machine() not in MACHINES:
        yield f"vLLM's CPU package is for {' and '.join(MACHINES)}, this is {platform.machine()}"
    todo = missing(pins, site_packages()) if is_whole(VENV) else list(pins)
    megabytes = sum(pin.megabytes for pin in todo) * COMPILED
    for where, needed in ((ROOT, megabytes), (Path(tempfile.gettempdir()), min(megabytes, DOWNLOADS_MB))):
        free = shutil.disk_usage(where).free / 1e6
        if free < needed:
            mend = "make room" if where == ROOT else "make room, or set TMPDIR to another disk"
            yield f"{where} has {free / 1e3:.1f} GB free and {needed / 1e3:.1f} GB are needed: {mend}"


def notes() -> Iterator[str]:
    """Yield what is missing and may be missed later."""
    compiler = os.environ.get("CXX", "")
    if not any(shutil.which(name) for name in (compiler, "g++", "c++", "clang++") if name):
        yield (
            "no C++ compiler: a run on the CPU needs none, torch.compile and some tests do; "
            "apt-get install g++, or set CXX"
        )


def is_whole(venv: Path) -> bool:
    """Return whether `venv` is of this very Python and has a pip that runs."""
    python = venv / "bin" / "python"
    want = f"{sys.version_info[0]}.{sys.version_info[1]}"
    ask = "import sys, pip; print('%d.%d' % sys.version_info[:2])"
    try:
        said = subprocess.run([python, "-c", ask], capture_output=True, text=True)
    except OSError:  # the interpreter that it was made with is gone
        return False
    return said.returncode == 0 and said.stdout.strip() == want


def make_venv() -> None:
    """Make .venv, or keep the one there is. Raises InstallError."""
    if is_whole(VENV):
        if any(site_packages().glob("vllm-[0-9]*.dist-info")):
            raise InstallError(
                ".venv has vLLM for GPUs, beside which the CPU's cannot be: remove .venv, or run rayqd in it as it is"
            )
        say(f"[1/3] .venv is there (Python {platform.python_version()})")
        return
    was = "; the one there is half made, or of another Python" if VENV.exists() else ""
    say(f"[1/3] creating .venv with Python {platform.python_version()}{was}")
    done = subprocess.run([sys.executable, "-m", "venv", "--clear", VENV], capture_output=True, text=True)
    if done.returncode:
        raise InstallError("Python's venv module is incomplete; on Debian and Ubuntu: apt-get install python3-venv")


def check_index(pins: Sequence[Pin]) -> None:
    """Fetch the smallest package, so that a network that is not there is found out at once. Raises InstallError."""
    smallest = min(pins, key=lambda pin: (pin.megabytes, len(pin.name)))
    words = ["--retries", "1", "--timeout", "20", "download", "--no-deps", str(smallest)]
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run([*PIP, *words, "-d", folder], capture_output=True, text=True, cwd=ROOT)
    if done.returncode:
        raise InstallError(explain(done.stderr + done.stdout))


def compile_imported() -> None:
    """Import what a run imports, once, so that Python's compiled files are there; pip would compile five times more.

    With PYTHONDONTWRITEBYTECODE set they would not be, and each process of each run would compile all of it again.
    """
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    say("[3/3] compiling what a run imports")
    running = [
        subprocess.Popen(
            [PYTHON, "-c", program],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        for program in PROGRAMS
    ]
    for program, process in zip(PROGRAMS, running, strict=True):
        _, said = process.communicate()
        if process.returncode:
            last = said.decode(errors="replace").strip().rpartition("\n")[2]
            first = program.partition("\n")[0]
            raise InstallError(f"{first} fails: {last}: remove .venv and run it again")


if __name__ == "__main__":
    sys.exit(main(sys.argv))
