"""The verdict on many arms in words: by what was decided of them, the largest difference first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rayqd.statistics.decision import Decision


@dataclass(frozen=True, slots=True, kw_only=True)
class Against:
    """What arms are held against."""

    name: str  # of the reference
    margin: float  # nats a token: less is no difference


def group(decided: Sequence[tuple[str, Decision]], against: Against, items: str) -> str:
    """Return `against off-policy, mixed (by 0.0055 nats) and slow (0.0040) are better; gptq (by 0.021 nats) is worse`.

    `decided` are arms by name, `items` what more of would decide. Intervals are left to the table.
    """
    is_known = [each for each in decided if each[1].difference.is_finite]
    not_finite = [name for name, decision in decided if not decision.difference.is_finite]
    parts = [text for outcome in ("better", "worse") if (text := _sized(is_known, outcome))]
    if equal := _of(is_known, "equivalent"):
        parts.append(f"{_and([name for name, _ in equal])} {_are(equal)} equivalent within ±{against.margin:g} nats")
    if left := _of(is_known, "not decided"):
        more = _needed([decision for _, decision in left], items)
        parts.append(f"of {_and([name for name, _ in left])} nothing is decided{more}")
    if not_finite:
        parts.append(f"of {_and(not_finite)} neither, as a KL is not finite")
    return f"against {against.name}, {'; '.join(parts)}"


def nats(value: float) -> str:
    """Return three decimals, or as many as show two digits."""
    return f"{value:.3f}" if abs(value) >= 0.0095 or value == 0 else f"{value:.2g}"


def _of(decided: Sequence[tuple[str, Decision]], outcome: str) -> list[tuple[str, Decision]]:
    return [each for each in decided if each[1].outcome == outcome]


def _sized(decided: Sequence[tuple[str, Decision]], outcome: str) -> str:
    arms = sorted(_of(decided, outcome), key=lambda each: -abs(each[1].difference.value))
    told = [f"{name} ({nats(abs(decision.difference.value))})" for name, decision in arms]
    if not told:
        return ""
    told[0] = told[0].replace("(", "(by ").replace(")", " nats)")
    return f"{_and(told)} {_are(told)} {outcome}"


def _needed(decisions: Sequence[Decision], items: str) -> str:
    """Say what would decide all of these, in seeds or else in items; empty where one is beyond either's reach."""
    seeds = [each.needed.seeds - each.difference.num_seeds for each in decisions if each.needed and each.needed.seeds]
    rows = [each.needed.items - each.difference.num_items for each in decisions if each.needed and each.needed.items]
    for numbers, what in ((seeds, "seeds"), (rows, items)):
        if len(numbers) == len(decisions):
            least, most = min(numbers), max(numbers)
            number = f"{most:,}" if least == most else f"{least:,} to {most:,}"
            return f" (about {number} more {what.removesuffix('s') if most == 1 else what} would, if it stays as it is)"
    return ""


def _are(arms: Sequence[object]) -> str:
    return "is" if len(arms) == 1 else "are"


def _and(names: Sequence[str]) -> str:
    """Return `a, b and c`."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
