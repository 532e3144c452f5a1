"""What a run read, as digests: a run that is there already counts only if it read the same."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path

import xxhash
from pydantic import TypeAdapter

from rayqd.checksums import digest, digest_file
from rayqd.comparison.jobs import Job
from rayqd.config import Config
from rayqd.data import ExampleSet
from rayqd.errors import RunError
from rayqd.files import write_text
from rayqd.model.source import student_directory, teacher_directories
from rayqd.runs.environment import digest_extensions
from rayqd.versions import installed_version

_READ = ("*.safetensors", "*.bin", "*.gguf", "*.json", "*.jinja", "*.model", "*.py")  # of a model's directory
_LENGTH = 12  # characters of a digest in an error


@dataclass(frozen=True, slots=True, kw_only=True)
class Inputs:
    """Digests of what a run read, and the version that read it."""

    model: str
    teacher: str
    training_rows: str  # tokens
    heldout_rows: str  # tokens
    rayqd: str
    user_code: str | None = None  # of the files behind import paths; None in records from before it was kept
    given_model: str | None = None  # of an arm that was made elsewhere; None of all others


def collect_inputs(
    config: Config, training: ExampleSet, heldout: ExampleSet, given_model: Path | None = None
) -> Inputs:
    """Read the files of the models, and the tokens of the rows; `given_model`: what is measured as it is."""
    return Inputs(
        model=digest_model(student_directory(config)),
        teacher=" ".join(digest_model(directory) for directory in teacher_directories(config)),
        training_rows=_digest_rows(training),
        heldout_rows=_digest_rows(heldout),
        rayqd=installed_version("rayqd") or "uninstalled",
        user_code=_digest_user_code(config),
        given_model=digest_model(given_model) if given_model else None,
    )


@cache
def digest_model(directory: Path) -> str:
    """Return the digest of everything that is read of a model: weights, configuration, tokenizer, template."""
    files = sorted({file for pattern in _READ for file in directory.glob(pattern)})
    return digest("\n".join(f"{file.name} {digest_file(file)}" for file in files).encode())


class KnownInputs:
    """`inputs.json` of a comparison's directory: what each of its runs read, by the run's name."""

    def __init__(self, directory: Path) -> None:
        """Read what is there. Raises RunError where the file is damaged."""
        self._file = directory / "inputs.json"
        try:
            self._known = _KNOWN.validate_json(self._file.read_bytes())
        except FileNotFoundError:
            self._known: dict[str, Inputs] = {}
        except ValueError:
            raise RunError(f"{self._file} is damaged: bring back a copy of it, or remove {directory}") from None

    def check(self, job: Job, now: Inputs) -> None:
        """Raise RunError where the job's run is there and read something else."""
        before = self._known.get(job.name)
        if before is None or not job.directory.exists():
            return
        if before.user_code is None:  # nobody can tell
            before = replace(before, user_code=now.user_code)
        if before == now:
            return
        changed = [
            f"{name.replace('_', ' ')}: {str(old)[:_LENGTH]} -> {str(new)[:_LENGTH]}"
            for (name, old), new in zip(_fields(before).items(), _fields(now).values(), strict=True)
            if old != new
        ]
        raise RunError(
            f"{job.directory} was made from something else ({'; '.join(changed)}): give this comparison another name, "
            "or remove the directory"
        )

    def record(self, job: Job, now: Inputs) -> None:
        """Keep what a job that begins reads. Raises StorageError."""
        self._known[job.name] = now
        write_text(self._file, json.dumps({name: _fields(each) for name, each in self._known.items()}, indent=1) + "\n")


def _fields(inputs: Inputs) -> Mapping[str, str | None]:
    return asdict(inputs)


def _digest_user_code(config: Config) -> str:
    digests = digest_extensions(config)
    return digest(json.dumps(digests, sort_keys=True).encode()) if digests else "none"


def _digest_rows(rows: ExampleSet) -> str:
    hasher = xxhash.xxh3_128()
    for example in rows.examples:
        for part in (example.prompt_ids, example.completion_ids):
            hasher.update(len(part).to_bytes(8, "little"))
            hasher.update(part.astype("<i4").tobytes())
        if example.trained is not None:
            hasher.update(example.trained.tobytes())
        if example.teacher:
            hasher.update(b"teacher %d" % example.teacher)
    return hasher.hexdigest()


_KNOWN = TypeAdapter(dict[str, Inputs])
