"""`rayqd quantize` on a tiny model: what it leaves, what it refuses, and that Ray is never loaded."""

import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from run_directories import result_of
from safetensors.torch import load_file

from rayqd.checksums import from_checked_json
from rayqd.cli import main
from rayqd.commands.evaluate import evaluate
from rayqd.commands.quantize import quantize
from rayqd.config.resolved import to_toml
from rayqd.config.sections import METHODS
from rayqd.driver.preflight import check
from rayqd.errors import ConfigError, RunError, StorageError
from rayqd.model.load import load_meta_model
from rayqd.model.source import local_directory
from rayqd.model.student import Student
from rayqd.runs.continuations import read_continuations
from rayqd.runs.directory import RunDirectory
from rayqd.runs.result_file import QuantizeResult
from tests.example_events import eval_event

CALIBRATION = {"group_size": 64, "calibration_tokens": 400, "rounding_steps": 20}


def run(config: Any) -> tuple[QuantizeResult, str]:
    output = io.StringIO()
    result = quantize(config, Console(file=output, width=160))
    return result, output.getvalue()


@pytest.mark.slow
@pytest.mark.parametrize("method", ["gptq", "awq", "autoround"])
def test_it_leaves_a_result_metrics_and_an_export_that_measures_the_same(tiny_config: Any, method: str) -> None:
    config = tiny_config(quant={**CALIBRATION, "method": method})
    result, output = run(config)
    run_dir = config.run_dir

    written = result.to_json()
    teacher, rounded, ours = [row.to_json() for row in result.rows]
    arms = ["teacher", "round-to-nearest INT4", f"{METHODS[method]} INT4"]
    assert [row.arm.name for row in result.rows] == arms
    assert teacher["kl_to_teacher"] == 0
    assert 0 < ours["kl_to_teacher"] < rounded["kl_to_teacher"]
    stored = load_file(run_dir / "export" / "model.safetensors")
    num_weights = sum(t.numel() for t in load_file(Path(config.model.name) / "model.safetensors").values())
    assert result.student.bits_per_weight == sum(8 * t.nbytes for t in stored.values()) / num_weights
    assert result.student.bits_by_kind is not None
    # 4 bits, a 16-bit scale for 64 weights, and the shape of each layer, two int64: 14 layers of 2 · 147,456 weights
    assert result.student.bits_by_kind["linear"] == 4 + 16 / 64 + 14 * 128 / (2 * 147_456)
    assert result.teacher.size_bytes == (Path(config.model.name) / "model.safetensors").stat().st_size
    assert result.student.size_bytes == (run_dir / "export" / "model.safetensors").stat().st_size
    assert {"total", "teacher", "calibration", "evaluation", "export"} == set(result.seconds)
    assert from_checked_json((run_dir / "result.json").read_bytes()) == json.loads(json.dumps(written))
    metrics = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    assert [(row["event"], row["arm"]) for row in metrics] == [("eval", arm) for arm in arms[1:]]
    assert "what 4 bits cost" in output
    assert "vllm serve" in output
    assert f"{ours['kl_to_teacher']:.4f}" in (run_dir / "report.html").read_text()

    measured = evaluate(run_dir, config, Console(file=io.StringIO()))
    assert measured.model.kl_to_teacher == pytest.approx(ours["kl_to_teacher"], rel=1e-3)

    again, output = run(config)
    assert "has finished already" in output
    assert again == result


@pytest.mark.slow
def test_rounding_alone_is_one_arm_and_needs_no_calibration(tiny_config: Any, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("some words of a running text " * 20, encoding="utf-8")
    config = tiny_config(quant={"method": "rtn"})
    config = config.model_copy(update={"eval": config.eval.model_copy(update={"text": str(text), "window": 32})})
    result, output = run(config)
    assert [row.arm.name for row in result.rows] == ["teacher", "round-to-nearest INT4"]
    measured = evaluate(config.run_dir, config, Console(file=io.StringIO()))
    assert measured.teacher.text_perplexity == pytest.approx(result.teacher.fidelity.text_perplexity, rel=1e-6)
    assert measured.model.text_perplexity == pytest.approx(result.student.fidelity.text_perplexity, rel=1e-3)
    assert f"{result.student.fidelity.num_text_tokens:,} tokens of eval.text" in output
    some = config.model_copy(update={"eval": config.eval.model_copy(update={"continuations": 2})})
    stream = io.StringIO()
    evaluate(config.run_dir, some, Console(file=stream, width=160))
    found = read_continuations(config.run_dir)
    assert found
    assert found.agreement in stream.getvalue()
    assert list(found.samples[0].texts) == ["teacher", "round-to-nearest INT4", "student"]
    assert found.samples[0].texts["student"] == found.samples[0].texts["round-to-nearest INT4"]  # it is that one
    assert "Where the student goes on by itself" in (config.run_dir / "report.html").read_text()
    assert measured.model.kl_to_teacher == pytest.approx(result.rows[1].fidelity.kl_to_teacher, rel=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("format", ["nvfp4", "nf4"])
def test_other_formats_take_awq_unless_told(format: str, tiny_config: Any) -> None:
    quant = {"format": format, "group_size": 16 if format == "nvfp4" else 64, "calibration_tokens": 400}
    config = tiny_config(quant=quant)
    result, _ = run(config)
    arms = ["teacher", f"round-to-nearest {format.upper()}", f"AWQ {format.upper()}"]
    assert [row.arm.name for row in result.rows] == arms
    assert (config.run_dir / "export" / "config.json").is_file()


@pytest.mark.slow
def test_the_same_settings_give_the_same_bits(tiny_config: Any) -> None:
    exports = []
    for name in ("one", "other"):
        config = tiny_config(name=name, quant={**CALIBRATION, "method": "awq"})
        run(config)
        exports.append(load_file(config.run_dir / "export" / "model.safetensors"))
    assert exports[0].keys() == exports[1].keys()
    assert all(torch.equal(tensor, exports[1][name]) for name, tensor in exports[0].items())


def test_an_interrupted_run_starts_again_and_its_metrics_count_once(tiny_config: Any) -> None:
    config = tiny_config(quant={"method": "rtn"})
    run_dir = RunDirectory(config, command="quantize")
    run_dir.append(eval_event("round-to-nearest INT4", 0.5), 0.0)
    run_dir.close()
    run(config)
    assert len((config.run_dir / "metrics.jsonl").read_text().splitlines()) == 1


def test_a_directory_of_another_command_is_refused_both_ways(tiny_config: Any) -> None:
    RunDirectory(tiny_config(name="distilled")).close()
    with pytest.raises(RunError, match=r"distilled belongs to `rayqd distill`, not `rayqd quantize`: give this run"):
        run(tiny_config(name="distilled"))
    RunDirectory(tiny_config(name="quantized"), command="quantize").close()
    with pytest.raises(RunError, match=r"quantized belongs to `rayqd quantize`, not `rayqd distill`"):
        RunDirectory(tiny_config(name="quantized"))


def test_another_method_in_the_same_directory_says_what_differs(tiny_config: Any) -> None:
    begun = RunDirectory(tiny_config(quant={"method": "gptq"}), command="quantize")
    begun.finish(result_of("tiny", 0.25))
    begun.close()
    with pytest.raises(RunError, match=r'another configuration \(quant.method: "gptq" -> "awq"\)'):
        run(tiny_config(quant={"method": "awq"}))


def test_a_method_that_the_format_does_not_know_is_refused_before_anything_is_written(
    tiny_config: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "run.toml"
    file.write_text(to_toml(tiny_config()))
    assert main(["quantize", f"@{file}", "--quant.format", "nf4", "--quant.rule", "absmax"]) == 2
    assert "method=gptq: GPTQ is for int4; nf4 takes rtn or awq" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()
    config = tiny_config()
    by_hand = config.model_copy(update={"quant": config.quant.model_copy(update={"format": "nf4"})})
    with pytest.raises(ConfigError, match=r"GPTQ needs quant\.format=int4, got nf4"):
        run(by_hand)
    assert not (tmp_path / "runs").exists()


def test_the_model_stays_in_its_own_dtype_and_nothing_is_trained(
    tiny_config: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    students: list[Student] = []
    monkeypatch.setattr(
        "rayqd.commands.quantize.Student",
        lambda *args, **options: students.append(Student(*args, **options)) or students[-1],
    )
    run(tiny_config(quant=CALIBRATION))
    assert len(students) == 2  # round-to-nearest and GPTQ
    for student in students:
        assert student.parameters() == {}
        assert {p.dtype for p in student.model.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize("method", METHODS)
def test_the_card_says_how_it_was_quantized_and_lists_no_settings_of_training(tiny_config: Any, method: str) -> None:
    config = tiny_config(quant={**CALIBRATION, "method": method, "init": "gptq"}, learner={"lr": 0.25})
    result, _ = run(config)
    card = (config.run_dir / "export" / "README.md").read_text()
    assert f"quantized by {METHODS[method]}, without training." in card
    assert ("Calibrated on the first rows of rows.jsonl that reach 400 tokens." in card) == (method != "rtn")
    assert not any(word in card for word in ("learner", "distill.", "quant.init", "- distillation", "- qat"))
    row = result.rows[-1]
    assert f"| {row.arm.name} | {row.fidelity.kl_to_teacher:.4f} |" in card


def test_it_needs_room_for_an_export_and_not_for_checkpoints(tiny_config: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny_config(quant={"method": "rtn"}, adapter={"kind": "none"})
    num_parameters = sum(p.numel() for p in load_meta_model(local_directory(config.model.name)).parameters())
    monkeypatch.setattr("rayqd.driver.preflight.free_bytes", lambda path: 2 * num_parameters)
    run(config)
    with pytest.raises(StorageError, match="GiB for checkpoints and export and has"):
        check(config)
    monkeypatch.setattr("rayqd.driver.preflight.free_bytes", lambda path: 2 * num_parameters - 1)
    with pytest.raises(StorageError, match="GiB for the export and has"):
        run(tiny_config(name="other", quant={"method": "rtn"}))


@pytest.mark.slow
def test_the_command_loads_neither_ray_nor_vllm(tiny_config: Any, tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text(to_toml(tiny_config(quant={"method": "rtn"})))
    program = (
        "import json, sys\nfrom rayqd.cli import main\n"
        f"assert main(['quantize', '@{file}']) == 0\nprint(json.dumps(sorted(sys.modules)), file=sys.stderr)"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=root)
    assert done.returncode == 0, done.stderr
    assert not {"ray", "vllm"} & set(json.loads(done.stderr.splitlines()[-1]))
    assert "round-to-nearest INT4" in done.stdout
