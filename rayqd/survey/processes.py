"""Each architecture in a process of its own, which a crash or a hang ends and nothing else; rows are kept in files."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterator, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from tempfile import TemporaryDirectory

from rayqd.errors import ConfigError
from rayqd.survey.row import Row, Verdict

LIMIT_SECONDS = 900.0  # of one architecture; some take a minute on a busy core
_CONTEXT = multiprocessing.get_context("forkserver")


def try_all(names: Sequence[str], directory: Path, *, again: bool = False) -> Iterator[Row]:
    """Yield the row of each of `names`, in their order: as `directory` has it, or by a trial, unless `again`.

    Rows of other versions of transformers or torch are tried anew. A name is a model type, or a directory with a
    config.json. Raises ConfigError at a name that is neither.
    """
    rows = directory / _versions()
    rows.mkdir(parents=True, exist_ok=True)
    for name in names:
        _check_name(name)
    _CONTEXT.set_forkserver_preload(["rayqd.survey.child"])
    for name in names:
        file = rows / f"{name.strip('/').replace('/', '-')}.json"
        if again or not file.is_file():
            _try(name, file)
        yield Row.read(file)


def _try(name: str, file: Path) -> None:
    """Have a process of its own write the row; where it does not, the row says how the process ended."""
    from rayqd.survey.child import write_row

    row = Row(architecture=name, class_name="", verdict=Verdict.FAILED)
    with TemporaryDirectory(prefix="rayqd-models-") as scratch:
        process = _CONTEXT.Process(target=write_row, args=(name, Path(scratch), file.with_suffix(".part")), daemon=True)
        process.start()
        process.join(LIMIT_SECONDS)
        row.words = _end(process)
    if row.words or not file.with_suffix(".part").is_file():
        row.write(file.with_suffix(".part"))
    os.replace(file.with_suffix(".part"), file)


def _end(process: BaseProcess) -> str:
    """Return how a process ended, killing it if it did not; empty where it ended by itself."""
    if process.is_alive():
        process.kill()
        process.join()
        return f"no end after {LIMIT_SECONDS:.0f} s"
    return f"the process ended with {process.exitcode}" if process.exitcode else ""


def _check_name(name: str) -> None:
    from rayqd.survey.architectures import causal_architectures

    known = causal_architectures()
    if name in known or (Path(name) / "config.json").is_file():
        return
    from rayqd.config.hints import nearest_word

    near = nearest_word(name, known)
    hint = f"did you mean {near}?" if near else "give a model_type, or a directory with a config.json"
    raise ConfigError(f'transformers has no causal architecture "{name}"; {hint}')


def _versions() -> str:
    """Return what a row depends on beside rayqd."""
    from importlib.metadata import version

    return "-".join(f"{package}{version(package).partition('+')[0]}" for package in ("transformers", "torch"))
