"""Which test files a change touches, on the repository itself: each fact is one that can be read in the files named."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
from changed import ROOT, CannotTellError, changed_files, find_tests

ALL = {str(path.relative_to(ROOT)) for path in ROOT.glob("tests/**/test_*.py")}


def test_a_module_touches_the_tests_that_import_it_and_those_of_what_imports_it() -> None:
    found = set(find_tests(["rayqd/losses/topk.py"]))
    assert {"tests/losses/test_topk.py", "tests/test_structure.py"} <= found
    assert "tests/learner/test_objective.py" in found  # rayqd.learner.objective imports the losses
    assert "tests/end_to_end/test_smollm2.py" in found  # starts `python -m rayqd`
    assert not found & {"tests/data/test_plan.py", "tests/console/test_inactivity.py"}  # import no loss


def test_a_module_that_only_a_command_imports_touches_few() -> None:
    found = set(
        find_tests(
            ["rayqd/quant/gptq.py"] if (ROOT / "rayqd/quant/gptq.py").exists() else ["rayqd/quant/gptq/solve.py"]
        )
    )
    assert "tests/quant/test_gptq.py" in found
    assert "tests/quant/test_int4.py" not in found


def test_data_inside_the_package_counts_as_its_package() -> None:
    (file, *_) = (path for path in (ROOT / "rayqd" / "data").rglob("*.jsonl"))
    assert "tests/data/test_examples.py" in find_tests([str(file.relative_to(ROOT))])


def test_a_test_touches_itself_and_a_helper_whoever_imports_it() -> None:
    assert find_tests(["tests/data/test_plan.py"]) == ["tests/data/test_plan.py"]
    imports = {file for file in ALL if re.search(r"^from (pages|code_names) import", (ROOT / file).read_text(), re.M)}
    found = set(find_tests(["tests/docs/pages.py"]))
    assert found >= imports  # and whoever has the word in its text
    assert all(re.search(r"\bpages\b", (ROOT / file).read_text()) for file in found - imports)
    assert set(find_tests(["tests/losses/conftest.py"])) == {file for file in ALL if file.startswith("tests/losses/")}
    assert find_tests(["tests/data/test_that_is_gone.py"]) == []


def test_a_page_touches_the_tests_of_the_documentation_and_settings_those_that_name_them() -> None:
    of_docs = {file for file in ALL if file.startswith("tests/docs/")}
    assert set(find_tests(["docs/jobs.md"])) >= of_docs
    assert set(find_tests(["configs/quickstart.toml"])) > of_docs | {"tests/end_to_end/test_smollm2.py"}
    assert "tests/quant/test_gptq.py" not in find_tests(["configs/quickstart.toml"])


@pytest.mark.parametrize("file", ["tests/conftest.py", "pyproject.toml", "requirements/cpu.txt", "rayqd/quant/gone.py"])
def test_where_it_cannot_tell_it_says_so(file: str) -> None:
    with pytest.raises(CannotTellError, match=file):
        find_tests(["docs/jobs.md", file])


def test_a_change_is_what_git_says_new_files_included(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def git(*words: str) -> None:
        subprocess.run(["git", "-c", "user.name=a", "-c", "user.email=a@b.c", *words], cwd=tmp_path, check=True)

    monkeypatch.setattr("changed.ROOT", tmp_path)
    with pytest.raises(CannotTellError, match="not a git repository"):
        changed_files("HEAD")
    git("init", "-q", "-b", "main")
    for name in ("one", "two"):
        (tmp_path / name).touch()
        git("add", name)
        git("commit", "-q", "-m", name)
    assert changed_files(None)[0] == ["two"]  # on main: the last commit
    git("switch", "-q", "-c", "branch")
    (tmp_path / "one").write_text("changed")
    git("commit", "-q", "-a", "-m", "three")
    (tmp_path / "two").write_text("not committed")
    (tmp_path / "ñew").touch()
    assert changed_files(None)[0] == ["one", "two", "ñew"]
    assert changed_files("HEAD")[0] == ["two", "ñew"]
