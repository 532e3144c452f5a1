"""`rayqd eval --as-run`: a run stays the measurement of the files that it measured."""

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console
from safetensors.torch import load_file, save_file

from rayqd.checksums import from_checked_json, to_checked_json
from rayqd.commands import measured_run
from rayqd.commands.evaluate import Evaluation
from rayqd.commands.evaluated_models import directory_of
from rayqd.commands.measured_run import measure_as_run
from rayqd.comparison.inputs import digest_model
from rayqd.config import Config
from rayqd.errors import ModelError
from rayqd.events import Fidelity
from rayqd.model.load import load_tokenizer
from rayqd.runs.paths import RESULT
from tests.evals.plain_writing import moved

CHANGED = r"theirs measured (\S+)/theirs-w4, whose files have changed since \(\w{12} -> \w{12}\): measure it as another"


@pytest.fixture
def given(tiny_model: Path, tmp_path: Path) -> Path:
    directory = tmp_path / "theirs-w4"
    moved(tiny_model).save_pretrained(directory)
    load_tokenizer(tiny_model).save_pretrained(directory)
    return directory


@pytest.fixture
def measure(
    tiny_config: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[Path], str]:
    """A function that measures a model as the run `theirs`, whose KL is 0.25, and returns what it printed."""

    def found(path: Path, *_: object, **__: object) -> Evaluation:
        kl = {"kl_to_teacher": 0.25, "total_variation": 0.1, "top1_agreement": 0.9, "perplexity": 3.0, "num_tokens": 9}
        return Evaluation(path=str(path), model=Fidelity(**kl), teacher=Fidelity(**kl), benchmarks=[])

    monkeypatch.setattr(measured_run, "evaluate", found)
    config = tiny_config(name="theirs", runs_dir=str(tmp_path / "runs"))

    def run(directory: Path) -> str:
        digest_model.cache_clear()  # as in a process of its own
        out = io.StringIO()
        measure_as_run(str(directory), config, Console(file=out, width=200))
        return out.getvalue()

    return run


def quantize_again(directory: Path) -> None:
    file = directory / "model.safetensors"
    weights = load_file(file)
    save_file({name: tensor + 1 for name, tensor in weights.items()}, file, {"format": "pt"})


def test_a_model_made_anew_in_its_place_has_no_result_yet(
    given: Path, measure: Callable[[Path], str], tmp_path: Path
) -> None:
    run = tmp_path / "runs" / "theirs"
    measure(given)
    digest_model.cache_clear()
    assert json.loads((run / RESULT).read_text())["model_digest"] == digest_model(given)
    assert "has finished already" in measure(given)
    assert directory_of(run) == given
    quantize_again(given)
    with pytest.raises(ModelError, match=CHANGED) as caught:
        measure(given)
    assert f"rayqd eval {given} --as-run @{run / 'config.toml'} --name ANOTHER), or remove {run}" in str(caught.value)
    with pytest.raises(ModelError, match=CHANGED):  # what `rayqd eval RUN --eval.tasks ...` asks
        directory_of(run)


def test_the_same_files_elsewhere_are_the_same_model_and_others_are_not(
    given: Path, measure: Callable[[Path], str], tmp_path: Path
) -> None:
    measure(given)
    shutil.copytree(given, tmp_path / "copy")
    assert "has finished already" in measure(tmp_path / "copy")
    quantize_again(tmp_path / "copy")
    with pytest.raises(ModelError, match=rf"theirs measured {given}, and this is {tmp_path / 'copy'}: measure it as "):
        measure(tmp_path / "copy")


def test_a_run_from_before_the_digest_was_kept_is_known_by_its_place(
    given: Path, measure: Callable[[Path], str], tmp_path: Path
) -> None:
    measure(given)
    file = tmp_path / "runs" / "theirs" / RESULT
    values = from_checked_json(file.read_bytes())
    del values["model_digest"]
    file.write_text(to_checked_json(values))
    quantize_again(given)
    assert "has finished already" in measure(given)
    assert directory_of(file.parent) == given
    shutil.copytree(given, tmp_path / "copy")
    with pytest.raises(ModelError, match=f"and this is {tmp_path / 'copy'}"):
        measure(tmp_path / "copy")
