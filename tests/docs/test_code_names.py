"""What the pages for contributors say of the code is there: files, functions, folders."""

import re
from pathlib import Path

import pytest
from code_names import code_names, defined_names, what_is_missing
from pages import ROOT

ARCHITECTURE = ROOT / "docs" / "architecture.md"
CONTRIBUTING = ROOT / "CONTRIBUTING.md"


@pytest.mark.parametrize("page", [ARCHITECTURE, CONTRIBUTING], ids=lambda page: page.name)
def test_every_name_on_the_page_is_in_the_code(page: Path) -> None:
    named = code_names(page.read_text())
    assert len(named) > 15
    assert [missing for file, name in named if (missing := what_is_missing(file, name))] == []


def test_a_name_that_is_not_there_is_found(tmp_path: Path) -> None:
    named = code_names(
        "`pipeline.py:Pipeline.batch` `pipeline.py` `pipeline.py:Pipe` `pipes.py:x` `rayqd distill` `x.py()`"
    )
    assert named == [("pipeline.py", "Pipeline.batch"), ("pipeline.py", ""), ("pipeline.py", "Pipe"), ("pipes.py", "x")]
    assert [what_is_missing(*each) for each in named] == ["", "", "pipeline.py defines no Pipe", "there is no pipes.py"]
    module = tmp_path / "module.py"
    module.write_text("A = 1\nB: int = 2\nclass C:\n    d: int\n    async def e(self):\n        f = 1\n")
    assert defined_names(module) == {"A", "B", "C", "C.d", "C.e"}


def test_the_tree_has_each_folder_once_and_in_the_order_of_the_layers() -> None:
    section = ARCHITECTURE.read_text().partition("## The tree")[2].partition("```\n")[2].partition("```")[0]
    listed = re.findall(r"^(\w+)/ +\S", section, flags=re.MULTILINE)
    folders = {path.parent.name for path in (ROOT / "rayqd").glob("*/__init__.py")}
    assert sorted(listed) == sorted(folders)
    contract = (ROOT / "pyproject.toml").read_text().partition("layers = [")[2].partition("\n]")[0]
    layers = [re.findall(r"\w+", line) for line in re.findall(r'"(.*)"', contract)]
    rank = {name: number for number, layer in enumerate(layers) for name in layer}
    ranks = [rank[name] for name in listed]
    assert ranks == sorted(ranks)


QUESTIONS = (
    "how the rollouts sample", "the KL's chunk size", "what a checkpoint holds", "how a metric is named",
    "the retry count", "how a GGUF is written", "where λ decides", "what happens at Ctrl-C",
    "how a wrong key is reported", "which layers are quantized",
)  # fmt: skip


@pytest.mark.parametrize("question", QUESTIONS)
def test_a_newcomers_question_has_an_answer_with_a_name_of_the_code(question: str) -> None:
    table = ARCHITECTURE.read_text().partition("## Where do I change")[2]
    (row,) = [line for line in table.splitlines() if line.startswith(f"| {question} |")]
    assert [name for _, name in code_names(row)]
