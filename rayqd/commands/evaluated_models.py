"""The models of `rayqd eval` as benchmarks ask them: by transformers, or by vLLM (`eval.backend`)."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from rayqd.comparison.inputs import digest_model
from rayqd.config import Config
from rayqd.errors import ModelError
from rayqd.evals.language_model import LanguageModel, TransformersModel
from rayqd.export.load import is_export, read_kind
from rayqd.model.load import load_model
from rayqd.model.source import local_directory
from rayqd.runs.paths import CHECKPOINTS, CONFIG, EXPORT
from rayqd.runs.result_file import MeasuredResult, read_measured

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class EvaluatedModels:
    """Opens one model after the other."""

    def __init__(self, config: Config, source: Path, tokenizer: Any, say: Callable[[str], None]) -> None:
        """`source`: the directory of the 16-bit model; `tokenizer`: None where there are no benchmarks."""
        self._config, self._source, self._tokenizer, self._say = config, source, tokenizer, say

    @contextmanager
    def open(self, model: PreTrainedModel, directory: Path | None) -> Generator[LanguageModel]:
        """Yield `model`; with vLLM what lies in `directory`, or, None, a copy of `model` with its dense weights.

        A directory of codes that vLLM has no kernel for on this machine is read as a copy, too, and that is said.
        """
        if self._config.eval.backend == "transformers":
            yield TransformersModel(model, self._tokenizer)
            return
        if directory is not None and (reason := self._explain_dense(directory)):
            self._say(f"vLLM runs {directory} with dense weights: {reason}")
            directory = None
        with tempfile.TemporaryDirectory(prefix="rayqd-dense-") as name:
            if directory is None:
                directory = Path(name)
                write_dense(model, self._source, directory, self._config.model.dtype)
                self._tokenizer.save_pretrained(directory)
            from rayqd.rollout.engine_makers import benchmark_engine
            from rayqd.rollout.language_model import EngineModel

            with benchmark_engine(directory, self._config) as engine:
                yield EngineModel(engine, self._tokenizer)

    def _explain_dense(self, directory: Path) -> str:
        """Return why vLLM is given a dense copy of the model in `directory`; empty where it takes it as it is."""
        if not is_export(directory):
            return ""
        kind = read_kind(directory)
        if kind != "compressed-tensors":
            return f"it is {kind}"
        from rayqd.rollout.kernels import choose_weight_form

        return choose_weight_form(self._source, self._config).reason


def directory_of(path: Path, *, trusts_code: bool = False) -> Path:
    """Return the checkpoint, or the model's directory, that `path` means. Raises ModelError where there is none.

    Of a run that measured a model which was there it is that one, and ModelError is raised where its files are others
    now. `trusts_code`: code of its own may be run.
    """
    if result := read_measured(path):
        check_measured(result, path, Path(result.model))
        path = Path(result.model)
    if (path / "student.safetensors").is_file():
        return path
    if (path / CHECKPOINTS).is_dir() and not (path / EXPORT).is_dir():
        raise ModelError(f"{path} has no export yet: name one of its checkpoints, {path / CHECKPOINTS}/step-...")
    directory = path / EXPORT if (path / EXPORT).is_dir() else path
    return directory if is_export(directory) else local_directory(str(directory.absolute()), trusts_code=trusts_code)


def check_measured(result: MeasuredResult, run_dir: Path, directory: Path) -> None:
    """Raise ModelError where the model in `directory` is not the one that the run in `run_dir` measured.

    By the files' content, wherever they lie; of a run from before their digest was kept by the place alone.
    """
    if not directory.is_dir():
        return  # which who loads it says
    now = digest_model(directory) if result.model_digest else None
    if result.model_digest == now and (now or result.model == str(directory)):
        return
    if result.model == str(directory):
        what = f"{directory}, whose files have changed since ({str(result.model_digest)[:12]} -> {str(now)[:12]})"
    else:
        what = f"{result.model}, and this is {directory}"
    raise ModelError(
        f"{run_dir} measured {what}: measure it as another run (rayqd eval {directory} --as-run @{run_dir / CONFIG} "
        f"--name ANOTHER), or remove {run_dir}"
    )


def engine_directory(path: Path, config: Config) -> Path | None:
    """Return the directory that vLLM loads what `path` means from; None of a checkpoint, which it cannot read."""
    directory = directory_of(path, trusts_code=config.model.trust_remote_code)
    return None if (directory / "student.safetensors").is_file() else directory


def write_dense(model: PreTrainedModel, source: Path, target: Path, dtype: str) -> None:
    """Write the weights of `model`, all of its layers plain, as a 16-bit checkpoint of the model in `source`.

    Raises ModelError where `model` lacks a weight that the one in `source` has.
    """
    plain = load_model(source, dtype)
    state = model.state_dict()
    own = plain.state_dict()
    missing = [name for name in own if name not in state]
    if missing:
        raise ModelError(f"vLLM cannot be given this model: it has no {missing[0]}; set eval.backend to transformers")
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(state[name])
    plain.save_pretrained(target)
