"""`file.py:name` on a page: whether there is such a file, and such a name in it."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

from markdown_it import MarkdownIt
from pages import ROOT

_CODE_NAME = re.compile(r"((?:[\w.-]+/)*[\w-]+\.py)(?::(\w+(?:\.\w+)*))?")


def code_names(text: str) -> list[tuple[str, str]]:
    """The (file, dotted name) of every inline code that is one; the name is empty where the file stands alone."""
    tokens = MarkdownIt().enable("table").parse(text)
    spans = [child.content for token in tokens for child in token.children or [] if child.type == "code_inline"]
    return [(match[1], match[2] or "") for span in spans if (match := _CODE_NAME.fullmatch(span))]


def what_is_missing(file: str, name: str) -> str:
    """Empty where the file is there, below rayqd/ or the repository, and defines the name."""
    path = next((folder / file for folder in (ROOT / "rayqd", ROOT) if (folder / file).is_file()), None)
    if path is None:
        return f"there is no {file}"
    return "" if not name or name in defined_names(path) else f"{file} defines no {name}"


@cache
def defined_names(path: Path) -> frozenset[str]:
    """Functions, classes and assigned names of a module, and of its classes after a dot."""
    names: set[str] = set()
    for statement in ast.parse(path.read_text()).body:
        own = _names_of(statement)
        names.update(own)
        if isinstance(statement, ast.ClassDef):
            names.update(f"{statement.name}.{inner}" for member in statement.body for inner in _names_of(member))
    return frozenset(names)


def _names_of(statement: ast.stmt) -> list[str]:
    match statement:
        case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
            return [name]
        case ast.AnnAssign(target=ast.Name(id=name)):
            return [name]
        case ast.Assign(targets=targets):
            return [target.id for target in targets if isinstance(target, ast.Name)]
        case _:
            return []
