"""Arms that were made elsewhere: measured as transformers loads them, and refused in a line where they cannot be."""

import io
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from made_runs import every_job, leave_run
from rich.console import Console
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from rayqd.cli import main
from rayqd.commands.compare_arms import check_baselines, check_runs, compare_arms
from rayqd.commands.compare_models import check_arm_model
from rayqd.commands.compare_own_text import measure_own_texts
from rayqd.commands.dry_run_compare import dry_run_compare
from rayqd.commands.given_models import find_given_model
from rayqd.comparison.directory import ComparisonDirectory
from rayqd.comparison.execute import baseline_words, is_finished
from rayqd.comparison.inputs import digest_model
from rayqd.comparison.jobs import Job, Jobs
from rayqd.config.assignment import Assignment
from rayqd.config.comparison import load_comparison
from rayqd.config.resolved import to_toml
from rayqd.errors import ModelError, RunError
from rayqd.model.load import load_tokenizer
from rayqd.runs.paths import EXPORT
from rayqd.sweep.shared import Data
from tests.evals.plain_writing import moved

FILE = """
name = "study"
runs_dir = "{directory}/runs"
model = {{name = "{model}", dtype = "float32"}}
data = {{source = "{directory}/train.jsonl", max_length = 128, min_room = 8}}
eval = {{source = "{directory}/heldout.jsonl", num_rows = 12}}
quant.group_size = 64
learner.steps = 4
[compare]
seeds = [5]
[compare.arms]
theirs = {{kind = "model", path = "{path}"}}
"""
CONTINUATIONS = Assignment(key="eval.continuations", value=3, origin="test")


@pytest.fixture
def make_jobs(tiny_model: Path, tiny_data: Path, tmp_path: Path) -> Callable[[Path], Jobs]:
    """A function that makes the comparison of rounding and a model."""
    lines = tiny_data.read_text().splitlines(keepends=True)
    (tmp_path / "train.jsonl").write_text("".join(lines[:20]))
    (tmp_path / "heldout.jsonl").write_text("".join(lines[20:]))

    def make(path: Path | str) -> Jobs:
        (tmp_path / "study.toml").write_text(FILE.format(directory=tmp_path, model=tiny_model, path=path))
        return Jobs(load_comparison([f"@{tmp_path / 'study.toml'}"]))

    return make


@pytest.fixture
def dense(tiny_model: Path, tmp_path: Path) -> Path:
    """A student of the tiny model with plain weights, as somebody else would write it."""
    directory = tmp_path / "out" / "dense-w4"
    moved(tiny_model).save_pretrained(directory)
    load_tokenizer(tiny_model).save_pretrained(directory)
    return directory


def theirs(jobs: Jobs) -> Job:
    (job,) = [job for job in jobs.baselines() if job.arm.is_made_elsewhere]
    return job


def write_nf4(source: Path, target: Path) -> dict[str, Tensor]:
    """Write bitsandbytes' NF4 with transformers; return its weights in float64, unpacked by a loop over the files."""
    asked = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
    AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32, quantization_config=asked).save_pretrained(target)
    stored, shapes = load_file(target / "model.safetensors"), load_file(source / "model.safetensors")
    values: dict[str, Tensor] = {}
    for name, tensor in stored.items():
        if f"{name}.absmax" in stored:
            bytes_ = tensor.flatten().long()
            codes = torch.stack([bytes_ >> 4, bytes_ & 15], dim=1).flatten()
            blocks = stored[f"{name}.quant_map"].double()[codes].reshape(len(stored[f"{name}.absmax"]), -1)
            values[name] = (blocks * stored[f"{name}.absmax"].double()[:, None]).reshape(shapes[name].shape)
        elif ".weight." not in name:
            values[name] = tensor.double()
    return values


def kl_of(values: dict[str, Tensor], teacher: Path, data: Data) -> float:
    """KL(teacher‖student) a token over the held-out rows, each alone, in float64."""
    models: list[Any] = []
    for weights in (load_file(teacher / "model.safetensors"), values):
        model: Any = AutoModelForCausalLM.from_pretrained(teacher, dtype=torch.float64, attn_implementation="eager")
        model.load_state_dict({name: tensor.double() for name, tensor in weights.items()}, strict=False)
        models.append(model)
    ((_, heldout),) = data.values()
    total, number = 0.0, 0
    for row in heldout.examples:
        ids = torch.tensor([[*row.prompt_ids.tolist(), *row.completion_ids.tolist()]])
        with torch.no_grad():
            q, p = (m(ids).logits[0, len(row.prompt_ids) - 1 : -1].log_softmax(-1) for m in models)
        total, number = total + float((q.exp() * (q - p)).sum()), number + len(p)
    return total / number


@pytest.mark.slow
def test_a_quantized_model_of_others_is_measured_as_its_files_say(
    make_jobs: Callable[[Path], Jobs], tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By the command that the comparison gives its process; the KL is that of the unpacked weights in float64."""
    target = tmp_path / "nf4"
    values = write_nf4(tiny_model, target)
    jobs = make_jobs(target)
    job = theirs(jobs)
    assert (job.name, job.seed) == ("theirs", None)
    data, _ = check_runs(jobs, [job])
    directory = ComparisonDirectory(jobs)
    settings = tmp_path / "job.toml"
    settings.write_text(to_toml(job.config))
    assert main([*baseline_words(job), f"@{settings}"]) == 0
    row = directory.outcome(job).row
    assert row is not None
    assert row.fidelity.kl_to_teacher == pytest.approx(kl_of(values, tiny_model, data), rel=1e-4)
    assert row.bits_per_weight == pytest.approx(
        8 * (target / "model.safetensors").stat().st_size / sum(tensor.numel() for tensor in values.values())
    )
    assert str(target) in (job.directory / "report.html").read_text()
    capsys.readouterr()
    assert main([*baseline_words(job), f"@{settings}"]) == 0  # started once more it only tells
    assert "has finished already" in capsys.readouterr().out

    assert main(["export", str(job.directory)]) == 1
    assert f"measured {target}, which was made elsewhere, and has nothing of its own" in capsys.readouterr().err
    assert main(["eval", str(job.directory)]) == 0  # whose model is where it was
    again = json.loads((job.directory / "eval" / "theirs.json").read_text())["model"]["kl_to_teacher"]
    assert again == pytest.approx(row.fidelity.kl_to_teacher, rel=1e-6)


@pytest.mark.slow
def test_along_its_own_text_it_is_what_the_same_model_is_as_the_export_of_a_run(
    make_jobs: Callable[[Path], Jobs], dense: Path
) -> None:
    jobs = make_jobs(dense)
    rounded, job = jobs.baselines()
    data, _ = check_runs(jobs, [rounded, job])
    directory = ComparisonDirectory(jobs)
    for each in (rounded, job):
        leave_run(each, 0.2)
    shutil.copytree(dense, rounded.directory / EXPORT)
    continued = Jobs(replace(jobs.spec, common=(*jobs.spec.common, CONTINUATIONS)))
    found = measure_own_texts(continued, [rounded, job], data, lambda _: None)
    directory.close()
    assert found is not None
    assert found.errors == {}
    assert found.by_run["theirs"] == found.by_run["rtn"]
    assert sum(found.by_run["theirs"].kl) > 0
    assert not list(dense.glob("eval"))  # nothing is written to what is another's


def test_changed_files_are_refused_with_the_difference_and_moved_ones_are_not(
    make_jobs: Callable[[Path], Jobs], dense: Path, tmp_path: Path
) -> None:
    jobs = make_jobs(dense)
    _, inputs = check_runs(jobs, jobs.baselines())
    directory = ComparisonDirectory(jobs)
    for job in jobs.baselines():
        directory.begin(job, inputs[job.name])
        leave_run(job, 0.2)
    directory.close()
    assert inputs["rtn"].given_model is None
    dense.rename(tmp_path / "elsewhere")
    at_another_place = make_jobs(tmp_path / "elsewhere")
    check_runs(at_another_place, at_another_place.baselines())
    assert is_finished(theirs(at_another_place))
    weights = load_file(tmp_path / "elsewhere" / "model.safetensors")
    name = min(weights)
    save_file(weights | {name: weights[name] + 1}, tmp_path / "elsewhere" / "model.safetensors", {"format": "pt"})
    digest_model.cache_clear()
    with pytest.raises(RunError, match=r"theirs was made from something else \(given model: \w{12} -> \w{12}\): give"):
        check_runs(at_another_place, at_another_place.baselines())


def test_what_is_wrong_is_said_before_anything_starts(make_jobs: Callable[[Path], Jobs], tmp_path: Path) -> None:
    jobs = make_jobs("./nothing-here")
    for command in (compare_arms, dry_run_compare):
        with pytest.raises(
            ModelError, match=r"^compare.arms.theirs.path = ./nothing-here: \S+/nothing-here: does not "
        ):
            command(jobs.spec, Console(file=io.StringIO()))
    assert not (tmp_path / "runs").exists()


def change(file: Path, **values: object) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def swap_two_tokens(directory: Path) -> None:
    tokenizer = json.loads((directory / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    change(directory / "tokenizer.json", model=tokenizer["model"])


def cut_short(directory: Path) -> None:
    file = directory / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def leave_out(directory: Path, part: str) -> None:
    file = directory / "model.safetensors"
    save_file({name: tensor for name, tensor in load_file(file).items() if part not in name}, file, {"format": "pt"})


def quantized(method: str, **more: object) -> Callable[[Path], None]:
    return lambda directory: change(directory / "config.json", quantization_config={"quant_method": method, **more})


def without_a_layer(directory: Path) -> None:
    quantized("compressed-tensors", format="dense", quantization_status="frozen")(directory)
    leave_out(directory, "layers.1.mlp.up_proj")


@pytest.mark.parametrize(
    ("spoil", "error"),
    [
        (swap_two_tokens, r"have different tokenizers \(99 and 99 tokens, 2 ids differ: \d+ is 'a' here and 'b' there"),
        (cut_short, r"model\.safetensors have \d+ bytes where \d+ are needed; download them again"),
        (lambda directory: leave_out(directory, "layers.1.mlp.up_proj"), "has no model.layers.1.mlp.up_proj.weight, "),
        (without_a_layer, "has no weights of model.layers.1.mlp.up_proj, which LlamaForCausalLM needs"),
        (
            quantized("exl9"),
            r"is exl9, which cannot be loaded here: transformers \S+ knows no such format; write it as",
        ),
        (
            quantized("aqlm", in_group_size=8),
            r"is aqlm, which cannot be loaded here: ImportError: .* `pip install aqlm\S*`; or write it as",
        ),
        (quantized("gptq", bits=4, group_size=64), "holds no packed weights"),
        (lambda directory: change(directory / "config.json", model_type="llamma"), "describes no model: "),
        (
            lambda directory: change(directory / "config.json", max_position_embeddings=64),
            "takes 64 tokens, and held-out rows may have 128: lower data.max_length, for all",
        ),
        (lambda directory: (directory / "config.json").rename(directory / "c.json"), "has no config.json"),
        (lambda directory: (directory / "student.safetensors").touch(), "is a checkpoint of training: rayqd export "),
        (
            lambda directory: (directory / "adapter_config.json").touch(),
            r"has an adapter \(adapter_config.json\), .* merge",
        ),
    ],
)
def test_a_model_that_cannot_be_measured_is_refused_in_a_line(
    spoil: Callable[[Path], object], error: str, make_jobs: Callable[[Path], Jobs], dense: Path
) -> None:
    spoil(dense)
    with pytest.raises(ModelError, match=error) as caught:
        check_baselines(make_jobs(dense))
    assert str(caught.value).startswith(f"compare.arms.theirs.path = {dense}: ")
    assert "\n" not in str(caught.value)


def test_the_teacher_is_no_arm_also_under_another_name(
    make_jobs: Callable[[Path], Jobs], tiny_model: Path, dense: Path, tmp_path: Path
) -> None:
    check_arm_model(theirs(make_jobs(dense)))
    copy = tmp_path / "copy"
    shutil.copytree(tiny_model, copy)
    for path in (tiny_model, copy):
        with pytest.raises(ModelError, match="is the teacher itself, and its KL is 0: the kind teacher stands for it"):
            check_arm_model(theirs(make_jobs(path)))


def test_a_path_is_a_model_a_folder_with_models_or_a_run_of_rayqds(dense: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=rf"out is no model's directory: did you mean {dense}\?"):
        find_given_model(str(dense.parent))
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    with pytest.raises(ModelError, match=r"run has no export yet: rayqd export \S+run makes one"):
        find_given_model(str(run))
    shutil.copytree(dense, run / "export")
    assert find_given_model(str(run)) == run / "export"
    with pytest.raises(ModelError, match="is a file, and a model is a directory"):
        find_given_model(str(dense / "config.json"))


def test_an_arm_without_a_seed_of_its_own_is_one_run(make_jobs: Callable[[Path], Jobs], dense: Path) -> None:
    assert [job.name for job in every_job(make_jobs(dense))] == ["rtn", "theirs"]
