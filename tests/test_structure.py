"""What can be counted of the code itself: the house's rules, so that they are kept without anybody counting."""

from __future__ import annotations

import ast
import statistics
from functools import cache
from pathlib import Path

import rayqd

ROOT = Path(rayqd.__file__).parent
SOURCES = {path.relative_to(ROOT): path.read_text() for path in sorted(ROOT.rglob("*.py"))}
TESTS = {path.relative_to(Path(__file__).parents[1]): path.read_text() for path in Path(__file__).parent.rglob("*.py")}

MAX_LINES = 300  # of a file: one idea
MAX_MEDIAN = 7  # lines of a function
MAX_UNTYPED_DICTS = 40  # lines that say dict[str, Any]
HANDLES = {"actor", "actors", "controller", "handle", "handles", "workers", "teachers", "rollouts"}


@cache
def every_node() -> dict[Path, list[ast.AST]]:
    return {path: list(ast.walk(ast.parse(text))) for path, text in SOURCES.items()}


def functions() -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
    nodes = (node for found in every_node().values() for node in found)
    return [node for node in nodes if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]


def test_no_file_has_more_than_300_lines() -> None:
    lines = {str(path): text.count("\n") for path, text in (SOURCES | TESTS).items()}
    assert {path: count for path, count in lines.items() if count > MAX_LINES} == {}


def test_half_of_all_functions_have_at_most_7_lines() -> None:
    lengths = [(node.end_lineno or node.lineno) - node.lineno + 1 for node in functions()]
    assert statistics.median(lengths) <= MAX_MEDIAN


def test_few_lines_say_that_a_dictionary_may_hold_anything() -> None:
    lines = {
        f"{path}:{number}"
        for path, text in SOURCES.items()
        for number, line in enumerate(text.splitlines(), 1)
        if "dict[str, Any]" in line
    }
    assert len(lines) <= MAX_UNTYPED_DICTS, sorted(lines)


def test_every_handle_of_an_actor_has_a_type() -> None:
    """They are known by their names; `ActorProxy[Any]` is for what takes an actor of any class."""
    untyped = [
        f"{path}:{node.lineno} {name}"
        for path, nodes in every_node().items()
        for node in nodes
        for name, annotation in annotated_names(node)
        if name.lstrip("_") in HANDLES and "Any" in annotation.replace("ActorProxy[Any]", "")
    ]
    assert untyped == []


def annotated_names(node: ast.AST) -> list[tuple[str, str]]:
    """Return the name and the annotation of a parameter, a field or an assignment that has one."""
    if isinstance(node, ast.arg) and node.annotation:
        return [(node.arg, ast.unparse(node.annotation))]
    if isinstance(node, ast.AnnAssign):
        name = node.target.attr if isinstance(node.target, ast.Attribute) else ast.unparse(node.target)
        return [(name, ast.unparse(node.annotation))]
    return []
