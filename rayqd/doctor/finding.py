"""What a check found, and how it is printed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Mark = Literal["ok", "warn", "fail"]
COLOURS: dict[Mark, str] = {"ok": "32", "warn": "33", "fail": "31"}
SUBJECT_WIDTH = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One line of the report; `fix` is the way out, a command where there is one."""

    subject: str
    mark: Mark
    text: str
    fix: str = ""


def print_finding(finding: Finding, coloured: bool) -> None:
    """Print `finding`, and under it the fix unless all is well."""
    mark = f"{finding.mark:4}"
    if coloured:
        mark = f"\033[{COLOURS[finding.mark]}m{mark}\033[0m"
    print(f"{mark}  {finding.subject:{SUBJECT_WIDTH}}{finding.text}", flush=True)
    if finding.mark != "ok" and finding.fix:
        print(f"{'':6}{'fix:':{SUBJECT_WIDTH}}{finding.fix}", flush=True)
