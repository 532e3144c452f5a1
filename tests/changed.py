"""Print the test files that a change touches, for `make test CHANGED=1`.

    .venv/bin/python tests/changed.py [BASE]

The change is everything since BASE, committed or not; without BASE, since the branch left main, or on main itself
since the commit before. A test file is touched when it changed, or when it names a module of rayqd (in an import, a
string or a script that it starts) which changed or which imports one that did, however indirectly; what a test takes
from its neighbours in tests/ counts as its own. Pages, settings and the like touch the tests that name them and those
of tests/docs. Where this cannot tell, everything is printed: standard error says which and why.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

import grimp

ROOT = Path(__file__).parents[1]
EVERYTHING = ("tests/conftest.py", "pyproject.toml", "requirements/")  # what every test stands on
OF_ALL_CODE = ("tests/test_structure.py", "tests/docs/test_code_names.py", "tests/docs/test_quoted_errors.py")
DYNAMIC = "rayqd.cli"  # imports its own modules by name
NAMES = re.compile(r"\brayqd(?:\.\w+)*")
FROM = re.compile(r"from (rayqd[\w.]*) import (?:\(([^)]*)\)|(.+))")
STARTS = re.compile(r'"-m", "rayqd"|-m rayqd|rayqd\.cli')


class CannotTellError(Exception):
    """Why every test has to run."""


def find_tests(changed: Iterable[str], root: Path = ROOT) -> list[str]:
    """Return the test files, relative to `root`, that a change of the files `changed` touches.

    Raises:
        CannotTellError: it may be any.
    """
    tests, found = tests_of(root), set[str]()
    for file in changed:
        if file.startswith(EVERYTHING):
            raise CannotTellError(f"{file} changed")
        found |= tests.touched_by(file)
    return sorted(found)


@cache
def tests_of(root: Path) -> Tests:
    return Tests(root)


@dataclass(frozen=True)
class Tests:
    """The test files of a repository, and what each of them depends on."""

    root: Path

    def touched_by(self, file: str) -> set[str]:
        if file.startswith("rayqd/"):
            module = self._module(file)
            # whoever imports a module imports the __init__ of its package
            package = {module} | self._graph.find_descendants(module)
            found = self._users_of(package) | set(OF_ALL_CODE)
        elif file.startswith("tests/") and not Path(file).name.startswith("test_"):
            found = self._neighbours_of(file)
        else:
            found = {test for test, texts in self._texts.items() if any(Path(file).name in text for text in texts)}
            found |= {test for test in self._texts if test.startswith("tests/docs/")} - {file}
            found |= {file} & self._texts.keys()
            if file.startswith("tests/"):
                found &= {file}
        return {test for test in found if (self.root / test).exists()}

    def _module(self, file: str) -> str:
        """The module that a file of rayqd/ is, or the package that a data file lies in."""
        path = Path(file)
        is_module = path.suffix == ".py" and path.stem != "__init__"
        name = ".".join((path.with_suffix("") if is_module else path.parent).parts)
        while path.suffix != ".py" and name not in self._graph.modules and "." in name:
            name = name.rpartition(".")[0]
        if name not in self._graph.modules:
            raise CannotTellError(f"{file} is gone, and nobody knows who used it")
        return name

    def _users_of(self, changed: set[str]) -> set[str]:
        modules = changed.union(*map(self._graph.find_downstream_modules, changed))
        if any(name.startswith(f"{DYNAMIC}.") for name in modules):
            modules |= {DYNAMIC} | self._graph.find_downstream_modules(DYNAMIC)
        return {test for test, named in self._named.items() if named & modules}

    def _neighbours_of(self, file: str) -> set[str]:
        if Path(file).name == "conftest.py":
            folder = f"{Path(file).parent}/"
            return {test for test in self._texts if test.startswith(folder)}
        stem = re.compile(rf"\b{re.escape(Path(file).stem)}\b")
        return {test for test, texts in self._texts.items() if any(stem.search(text) for text in texts)}

    @cached_property
    def _named(self) -> dict[str, set[str]]:
        """By test file, the modules of rayqd that it and its neighbours name."""
        return {test: set[str]().union(*map(self._modules_in, texts)) for test, texts in self._texts.items()}

    def _modules_in(self, text: str) -> set[str]:
        """Those in a source: in its `from` imports and wherever a dotted name stands, its strings included."""
        found = {self._longest(name) for name in NAMES.findall(text)}
        for package, several, one in FROM.findall(text):
            for name in (several or one).split(","):
                found.add(self._longest(f"{package}.{name.split()[0]}" if name.split() else package))
        if STARTS.search(text):
            found |= {"rayqd.__main__", DYNAMIC}
        return found

    def _longest(self, name: str) -> str:
        while name not in self._graph.modules and "." in name:
            name = name.rpartition(".")[0]
        return name

    @cached_property
    def _graph(self) -> grimp.ImportGraph:
        return grimp.build_graph("rayqd", cache_dir=None)

    @cached_property
    def _texts(self) -> dict[str, list[str]]:
        """By test file, its own text and that of the neighbours it imports."""
        sources = {str(path.relative_to(self.root)): path.read_text() for path in self.root.glob("tests/**/*.py")}
        helpers = {Path(file).stem: file for file in sources if not Path(file).name.startswith("test_")}
        helpers.pop("conftest", None)
        return {
            file: [sources[each] for each in _closure(file, sources, helpers)]
            for file in sources
            if Path(file).name.startswith("test_")
        }


def _closure(file: str, sources: dict[str, str], helpers: dict[str, str]) -> set[str]:
    found, todo = set[str](), [file]
    while todo:
        each = todo.pop()
        if each not in found:
            found.add(each)
            imported = re.findall(r"^\s*(?:from|import) (?:tests\.)?([\w.]+)", sources[each], re.MULTILINE)
            todo += [helpers[stem] for name in imported if (stem := name.rpartition(".")[2]) in helpers]
    return found


def changed_files(base: str | None) -> tuple[list[str], str]:
    """Return what differs from a commit, new files included, and that commit's name.

    Raises:
        CannotTellError: git does not know.
    """
    commit = _git("rev-parse", "--short", base)[0] if base else _base()
    return [*_git("diff", "--name-only", commit), *_git("ls-files", "--others", "--exclude-standard")], commit


def _base() -> str:
    for main in ("main", "origin/main"):
        try:
            base = _git("merge-base", "HEAD", main)[0]
        except CannotTellError:
            continue
        return _git("rev-parse", "--short", "HEAD~1" if base == _git("rev-parse", "HEAD")[0] else base)[0]
    raise CannotTellError("there is neither a main nor an origin/main to compare with; name a commit: CHANGED=HEAD~3")


def _git(*words: str) -> list[str]:
    done = subprocess.run(["git", "-c", "core.quotePath=off", *words], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise CannotTellError(done.stderr.strip().partition("\n")[0])
    return done.stdout.splitlines()


def main(words: list[str]) -> int:
    try:
        changed, commit = changed_files(words[0] if words and words[0] != "1" else None)
        tests = find_tests(changed)
        num_all = len(list(ROOT.glob("tests/**/test_*.py")))
        print(f"{len(tests)} of {num_all} test files: {len(changed)} files changed since {commit}", file=sys.stderr)
    except CannotTellError as reason:
        print(f"every test: {reason}", file=sys.stderr)
        tests = ["tests"]
    print("\n".join(tests))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
