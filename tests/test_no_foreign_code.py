"""Nothing that is read from a storage, a cache or an export runs code: what could is used in these places alone."""

from __future__ import annotations

import ast
from pathlib import Path

import rayqd

ROOT = Path(rayqd.__file__).parent
MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "marshal", "shelve", "joblib"}
CALLS = {"eval", "exec", "compile", "torch.load", "yaml.load", "yaml.unsafe_load", "yaml.full_load"}
ALLOWED = {
    "sweep/callback.py pickle",  # the error of a trial, which Ray Tune has just written on this machine
    "data/tokenizer_process.py pickle",  # what a process is told by the one that started it, through a pipe
    "data/tokenizer_processes.py pickle",
}


def found_in(path: Path) -> set[str]:
    name = path.relative_to(ROOT).as_posix()
    nodes = list(ast.walk(ast.parse(path.read_text())))
    modules = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    modules |= {node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)}
    calls = [node for node in nodes if isinstance(node, ast.Call)]
    found = {f"{name} {module.partition('.')[0]}" for module in modules if module.partition(".")[0] in MODULES}
    found |= {f"{name} {called}" for call in calls if (called := ast.unparse(call.func)) in CALLS}
    return found | {f"{name} {flag}" for call in calls for flag in dangerous_flags(call)}


def dangerous_flags(call: ast.Call) -> list[str]:
    given = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
    return [f"{flag}=True" for flag in ("allow_pickle", "trust_remote_code", "shell") if given.get(flag) == "True"]


def test_nothing_unpickles_evaluates_or_trusts_what_it_reads() -> None:
    assert {each for path in ROOT.rglob("*.py") for each in found_in(path)} == ALLOWED


def test_what_could_is_recognized() -> None:
    file = ROOT / "audit.py"
    nodes = ast.parse("import torch, numpy as np\ntorch.load(x)\nnp.load(x, allow_pickle=True)\neval(x)")
    calls = [node for node in ast.walk(nodes) if isinstance(node, ast.Call)]
    assert {ast.unparse(call.func) for call in calls} & CALLS == {"torch.load", "eval"}
    assert [flag for call in calls for flag in dangerous_flags(call)] == ["allow_pickle=True"]
    assert found_in(file) == set()
