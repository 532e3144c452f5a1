"""Import paths in settings: what is loaded, and the one line that says why something is not."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from rayqd.errors import ConfigError
from rayqd.extensions import check_signature, is_import_path, load_extension, source_digest

SETTING = "distill.loss"


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A package `outside` in the working directory, which is on no path that Python looks at."""
    root = tmp_path / "outside"
    root.mkdir()
    (root / "__init__.py").touch()
    (root / "losses.py").write_text("RATE = 0.5\n\n\ndef squared_error(student, teacher, *, beta):\n    return 1\n")
    (root / "needy.py").write_text("import a_library_that_nobody_has\n")
    (root / "sibling.py").write_text("from outside.lost import thing\n")
    (root / "broken.py").write_text("raise RuntimeError('no licence\\nfound')\n")
    (root / "typo.py").write_text("def f(:\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    yield root
    for name in [name for name in sys.modules if name.partition(".")[0] == "outside"]:
        del sys.modules[name]


def test_a_function_is_loaded_from_the_working_directory(package: Path) -> None:
    assert load_extension("outside.losses:squared_error", SETTING)(1, 2, beta=0) == 1


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("outside.losses", "distill.loss=outside.losses is no import path: write package.module:name"),
        ("outside.losses.squared_error:", "is no import path"),
        (":squared_error", "is no import path"),
        ("outside/losses.py:squared_error", "is no import path"),
        (".losses:squared_error", "is no import path"),
        ("not_there.losses:squared_error", "there is no module not_there: install it, or put its directory on"),
        ("outside.loses:squared_error", "there is no module outside.loses: install it"),
        ("outside.losses.more:f", "there is no module outside.losses.more"),
        ("outside.needy:f", "outside.needy imports a_library_that_nobody_has, which is not installed"),
        ("outside.sibling:f", "outside.sibling imports outside.lost, which is not installed"),
        ("outside.broken:f", "importing outside.broken raises RuntimeError: no licence found"),
        ("outside.typo:f", "importing outside.typo raises SyntaxError: "),
        ("outside.losses:square_error", "outside.losses has no square_error; did you mean squared_error?"),
        ("outside.losses:something", "outside.losses has no something"),
        ("outside.losses:RATE", "distill.loss=outside.losses:RATE is of type float, which cannot be called"),
    ],
)
def test_what_cannot_be_loaded_is_one_line(package: Path, path: str, message: str) -> None:
    with pytest.raises(ConfigError) as raised:
        load_extension(path, SETTING)
    text = str(raised.value)
    assert message in text
    assert text.startswith(f"{SETTING}={path}")
    assert "\n" not in text


def test_a_call_that_the_signature_does_not_allow_is_refused_with_the_call(package: Path) -> None:
    path = "outside.losses:squared_error"
    function = load_extension(path, SETTING)
    check_signature(function, path, SETTING, ["student_logits", "teacher_logits"], ["beta"])
    with pytest.raises(ConfigError) as raised:
        check_signature(function, path, SETTING, ["student_logits", "teacher_logits"], ["beta", "temperature"])
    assert str(raised.value) == (
        "distill.loss=outside.losses:squared_error is called as squared_error(student_logits, teacher_logits, "
        "beta=..., temperature=...), but got an unexpected keyword argument 'temperature': it has "
        "(student, teacher, *, beta)"
    )


def test_the_digest_is_that_of_the_file(package: Path) -> None:
    function = load_extension("outside.losses:squared_error", SETTING)
    assert source_digest(function) == hashlib.sha256((package / "losses.py").read_bytes()).hexdigest()
    assert source_digest(len) is None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("mypackage.losses:my_loss", True),
        ("module:name", True),
        ("jsd", False),
        ("s3://bucket/rows.jsonl", False),
        ("C:\\rows.jsonl", False),
        ("org/dataset:train", False),
        ("a:b:c", False),
    ],
)
def test_an_import_path_is_told_from_other_values(text: str, expected: bool) -> None:
    assert is_import_path(text) is expected


def test_loading_needs_neither_torch_nor_ray() -> None:
    code = "import sys, rayqd.extensions; assert not {'torch', 'ray', 'numpy'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], check=True)
