"""The recipe study's baselines from other packages: their calibration rows, what they refuse, what they write."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from rayqd.errors import ConfigError, DataError
from rayqd.model.load import load_model, load_tokenizer

TUNE = Path(__file__).parents[2] / "tune"
sys.path.insert(0, str(TUNE))

import autoround  # noqa: E402
import elsewhere  # noqa: E402
import measure_elsewhere  # noqa: E402
import recipes  # noqa: E402

GROUP = 32
NUM_TOKENS = 200


@pytest.fixture
def study(tiny_model: Path, tmp_path: Path) -> Path:
    """A study of the tiny model: arms.toml, and in data/ rows of 12 to 51 characters, each a token."""
    flags = f"--model.name {tiny_model} --model.dtype float32 --quant.group_size {GROUP} --quant.init gptq"
    flags += f" --quant.calibration_tokens {NUM_TOKENS} --data.max_length 64 --data.min_room 1 --learner.batch_size 4"
    (tmp_path / "arms.toml").write_text(f'base = "{flags}"\n[arm.rtn]\nmethod = "rtn"\n')
    (tmp_path / "data").mkdir()
    for name in ("train", "gsm8k", "wikitext"):
        rows = [f"{name} " + "abcdefghij"[i % 10] * (4 + i) for i in range(40)]
        text = "".join(json.dumps({"text": row[:51]}) + "\n" for row in rows)
        (tmp_path / "data" / f"{name}.jsonl").write_text(text)
    return tmp_path


def read_job(study: Path, *arguments: str) -> elsewhere.Job:
    return elsewhere.read_job(
        elsewhere.parser("").parse_args([str(study / "arms.toml"), str(study / "data"), str(study / "out"), *arguments])
    )


def test_every_tool_calibrates_on_the_rows_of_the_studys_gptq(study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[np.ndarray] = []

    def calibrate(model: object, quant: object, grid: object, sequences: list[np.ndarray], **_: object) -> None:
        seen.extend(sequences)

    job = read_job(study)
    monkeypatch.setattr(recipes, "calibrate", calibrate)
    recipes.Study(job.config, study / "data").student(job.config, "gptq")
    assert [row.tolist() for row in job.rows] == [row.tolist() for row in seen]

    lengths = [len(row) for row in job.rows]
    assert sum(lengths[:-1]) < NUM_TOKENS <= sum(lengths)
    tokenizer = load_tokenizer(job.directory)
    texts = {json.loads(line)["text"] for line in (study / "data" / "train.jsonl").read_text().splitlines()}
    said = [tokenizer.decode(row, skip_special_tokens=True) for row in job.rows]
    assert set(said) <= texts
    assert len(set(said)) == len(said)


def test_rows_of_one_length_are_the_calibration_tokens_in_their_order() -> None:
    rows = [np.arange(0, 5), np.arange(5, 6), np.arange(6, 17)]
    assert autoround.equal_rows(rows, 4, 14).tolist() == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]
    with pytest.raises(ConfigError, match="17 calibration tokens do not fill a row of --length 18"):
        autoround.equal_rows(rows, 18, 20)


def test_what_stands_for_padding_is_in_no_row() -> None:
    assert autoround.unused_token(np.array([[0, 1, 3], [4, 1, 0]]), 6) == 2
    with pytest.raises(ConfigError, match="all 3 tokens"):
        autoround.unused_token(np.array([[0, 1, 2]]), 3)


def test_a_job_that_cannot_be_is_refused_with_what_to_do(study: Path) -> None:
    with pytest.raises(ConfigError, match=r"quant\.format=nvfp4.*leave it at int4"):
        read_job(study, "--flags", "--quant.format nvfp4 --quant.group_size 16 --quant.init rtn")
    (study / "data" / "train.jsonl").unlink()
    with pytest.raises(DataError, match=r"train\.jsonl"):
        read_job(study)
    (study / "arms.toml").write_text("[arm.rtn]\n")
    with pytest.raises(ConfigError, match="has no `base`"):
        read_job(study)
    (study / "arms.toml").unlink()
    with pytest.raises(ConfigError, match=r"arms\.toml.*give a file like"):
        read_job(study)
    (study / "out").mkdir()
    with pytest.raises(ConfigError, match="is there already"):
        read_job(study)


def test_a_missing_package_and_a_bad_number_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended, elsewhere.errors_in_a_line():
        elsewhere.import_tool("no_such_tool", "no-such-tool")
    assert ended.value.code == ConfigError.exit_code
    assert capsys.readouterr().err.startswith("error: no_such_tool cannot be imported")
    with pytest.raises(argparse.ArgumentTypeError, match="at least 1"):
        elsewhere.positive("0")


def test_weights_that_are_not_of_four_bits_or_not_of_every_layer_are_refused() -> None:
    name = "model.layers.0.mlp.up_proj.weight"
    state = {
        name: torch.zeros(2, 64),
        "model.layers.0.norm.weight": torch.ones(64),
        "lm_head.weight": torch.ones(9, 64),
    }
    of_16 = torch.arange(64).remainder(16).float().repeat(2, 1)
    elsewhere.check_weights({name: of_16}, state, 64)
    of_17 = of_16.clone()
    of_17[1, 40] = 0.5
    with pytest.raises(ConfigError, match=f"{name}: a group of 64 has 17 values"):
        elsewhere.check_weights({name: of_17}, state, 64)
    with pytest.raises(ConfigError, match=name):
        elsewhere.check_weights({}, state, 64)
    with pytest.raises(ConfigError, match="lm_head"):
        elsewhere.check_weights({name: of_16, "lm_head.weight": state["lm_head.weight"]}, state, 64)


def test_a_saved_model_is_the_dense_one_but_for_the_weights_given_and_is_measured(
    study: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = read_job(study)
    state = job.load().state_dict()
    layers = {name for name, tensor in state.items() if ".layers." in name and tensor.ndim == 2}
    job.save({name: state[name].sign() * 0.02 for name in layers}, {"iterations": 3}, "numpy")

    saved = load_file(study / "out" / "model.safetensors")
    assert layers < saved.keys()
    for name, tensor in saved.items():
        assert torch.equal(tensor, state[name].sign() * 0.02 if name in layers else state[name]), name
    assert load_tokenizer(study / "out").get_vocab() == load_tokenizer(job.directory).get_vocab()

    results = study / "results.jsonl"
    arguments = [study / "arms.toml", study / "data", results, f"signs={study / 'out'}"]
    monkeypatch.setattr(sys, "argv", ["measure_elsewhere.py", *map(str, arguments)])
    measure_elsewhere.main()
    (line,) = map(json.loads, results.read_text().splitlines())
    assert line["arm"] == "signs"
    assert line["elsewhere"]["package"] == "numpy"
    assert all(line[name]["kl_to_teacher"] > 1e-3 for name in recipes.HELDOUT)
    of_itself = recipes.Study(job.config, study / "data").measure_model(load_model(job.directory, "float32"))
    assert all(abs(of_itself[name]["kl_to_teacher"]) < 1e-6 for name in recipes.HELDOUT)


@pytest.mark.parametrize(("text", "said"), [("autoround", "write NAME=DIR"), ("a=nowhere", "lacks elsewhere.json")])
def test_what_is_no_model_of_the_scripts_is_not_measured(text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        measure_elsewhere.read_arm(text)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("script", "package", "flags"),
    [
        ("autoround", "auto_round", ["--iterations", "2", "--length", "32"]),
        ("llmcompressor_gptq", "llmcompressor", []),
        ("llmcompressor_gptq", "llmcompressor", ["--observer", "imatrix_mse"]),
    ],
)
def test_what_the_tools_write_lies_on_a_symmetric_grid_of_four_bits(
    tiny_model: Path, study: Path, script: str, package: str, flags: list[str]
) -> None:
    if find_spec(package) is None:
        pytest.skip(f"{package} is in an environment of its own")
    arguments = [study / "arms.toml", study / "data", study / "out", *flags]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([p for p in sys.path if p != str(TUNE)])}
    subprocess.run([sys.executable, TUNE / f"{script}.py", *arguments], check=True, env=environment, cwd=study)
    saved = load_file(study / "out" / "model.safetensors")
    for name, dense in load_model(tiny_model, "float32").state_dict().items():
        if ".layers." in name and dense.ndim == 2:
            assert on_a_symmetric_grid(saved[name]), name
            assert not on_a_symmetric_grid(dense), name
            assert (saved[name] - dense).norm() < 0.3 * dense.norm(), name


def on_a_symmetric_grid(weight: torch.Tensor) -> bool:
    """Whether each group is whole multiples, -8 to 8, of its largest value divided by one of 1 to 8."""
    groups = weight.double().reshape(-1, GROUP)
    largest = groups.abs().amax(1, keepdim=True).clamp_min(1e-30)
    codes = torch.stack([groups / largest * number for number in range(1, 9)])
    return bool(((codes - codes.round()).abs().amax(-1).amin(0) < 1e-3).all())
