"""`rayqd data` needs a tokenizer, and nothing that costs."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import ray

from rayqd.cli import main
from rayqd.config.resolved import to_toml


@pytest.fixture
def look(
    tiny_config: Any,
    tiny_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Any:
    """Runs `rayqd data` on a model without weights; returns exit code, screen and error."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")
    model = tmp_path / "model"
    shutil.copytree(tiny_model, model, ignore=shutil.ignore_patterns("*.safetensors"))

    def run(*flags: str, **sections: Any) -> tuple[int, str, str]:
        (tmp_path / "run.toml").write_text(to_toml(tiny_config(**{"model": {"name": str(model)}} | sections)))
        code = main(["data", "@run.toml", *flags])
        captured = capsys.readouterr()
        assert not ray.is_initialized()
        return code, captured.out, captured.err

    return run


def test_it_tells_what_a_run_reads_and_leaves_nothing(look: Any, tmp_path: Path) -> None:
    code, out, err = look("--distill.lmbda", "0")
    assert (code, err) == (0, "")
    assert "training  " in out
    assert "4 steps of 4 sequences are about 0.44 epochs; an epoch is about 9.0 steps" in out  # 40 rows less 4 held out
    assert out.count("⟦") == 4  # three rows, and the line that says what it means
    assert "ends with <|im_end|>" in out
    assert not (tmp_path / "runs").exists()


def test_rows_are_as_many_as_are_asked_for(look: Any) -> None:
    assert look("--rows", "0")[1].count("<|im_start|>user") == 0
    assert look("--rows=5")[1].count("<|im_start|>user") == 5


def test_the_page_has_the_rows_and_needs_nothing_beside_it(look: Any, tmp_path: Path) -> None:
    code, out, err = look("--html", "page.html")
    assert (code, err) == (0, "")
    assert "page      page.html" in out
    page = (tmp_path / "page.html").read_text()
    assert page.count('<pre class="seen">') == 3
    assert "http" not in page.replace("http-equiv", "")


@pytest.mark.parametrize(
    ("flags", "code", "said"),
    [
        (["--rows", "some"], 2, '--rows: must be a number of rows, got "some"'),
        (["--html", "no/page.html"], 2, "there is no directory"),
        (["--data.source", "none.jsonl"], 1, "none.jsonl"),
        (["--model.name", "./nowhere"], 1, "model directory nowhere does not exist"),
        (["--data.max_length", "4096"], 2, "set data.max_length to 512 or less"),
        (["--data.chat_template_kwargs", '{"massages": 1}'], 2, "does not read massages; did you mean messages?"),
    ],
)
def test_what_is_wrong_is_one_line(flags: list[str], code: int, said: str, look: Any) -> None:
    found, _, err = look(*flags)
    assert found == code
    assert said in err
    assert err.count("\n") == 1
