"""The verdict of a comparison in words."""

from __future__ import annotations

from collections.abc import Sequence

from rayqd.comparison.findings import ArmFinding, Findings
from rayqd.config.sections.compare import Budget
from rayqd.statistics.crossed import Estimate
from rayqd.statistics.decision import Decision

_PHRASES: dict[Budget, str] = {
    "steps": "{amount} steps",
    "tokens": "{amount} tokens",
    "accelerator-seconds": "{amount} accelerator-seconds",
    "wall-clock": "{amount} seconds",
}


def sentence(findings: Findings) -> str:
    """Return what is decided of the trained arms, and how the others stand."""
    parts = [describe_arm(each, findings) for each in _trained_first(findings.arms) if each.decision]
    if not parts:
        return "Nothing is decided: no two arms have a result."
    text = "; ".join(parts)
    return f"{text[0].upper()}{text[1:]}."


def describe_arm(finding: ArmFinding, findings: Findings) -> str:
    """Return `on-policy is worse than off-policy by 0.012 nats (0.004 to 0.020)`."""
    decision = finding.decision
    assert decision is not None
    name, reference = finding.arm.name, findings.reference.arm.name
    size = nats(abs(decision.difference.value))
    match decision.outcome:
        case "better" | "worse":
            return f"{name} is {decision.outcome} than {reference} by {size} nats{_between(decision.difference, True)}"
        case "equivalent":
            margin = f"{findings.spec.compare.margin:g}"
            ends = _between(decision.difference, False)
            return f"{name} and {reference} are equivalent within ±{margin} nats{ends}"
        case "not decided" if not decision.difference.is_finite:
            whose = name if finding.kl and not finding.kl.is_finite else reference
            return f"whether {name} is better than {reference} is not decided: the KL of {whose} is not finite"
        case "not decided":
            ends = _between(decision.difference, False)
            alone = _alone(decision.difference, sum(1 for each in findings.arms if each.decision))
            return f"whether {name} is better than {reference} is not decided{ends}{alone}{_needed(decision)}"


def evidence(findings: Findings) -> str:
    """Return what the numbers rest on."""
    seeds = _least_seeds(findings)
    rows = f"{findings.num_rows:,} held-out rows of {findings.num_tokens:,} tokens"
    over = f"{rows} and {seeds} seeds together" if seeds > 1 else f"{rows}, with one seed"
    more = "" if seeds > 1 else " What other seeds would have given is not in them."
    return (
        f"In brackets: 95 % intervals of the difference in KL to the teacher, nats a token, over {over}; tests at 5 % "
        f"for all arms together (Holm).{more}"
    )


def _least_seeds(findings: Findings) -> int:
    """Return over how many seeds the differences are that rest on the fewest, as where a run has failed."""
    decided = [each.decision.difference.num_seeds for each in findings.arms if each.decision]
    return min(decided, default=len(findings.spec.compare.seeds))


def budget_text(findings: Findings) -> str:
    """Return `2 seeds of 32 steps each`."""
    compare = findings.spec.compare
    amount = _PHRASES[compare.budget].format(amount=f"{findings.amount:,.10g}")
    return f"{len(compare.seeds)} seed{'s' if len(compare.seeds) > 1 else ''} of {amount} each"


def nats(value: float) -> str:
    """Return three decimals, or as many as show two digits."""
    return f"{value:.3f}" if abs(value) >= 0.0095 or value == 0 else f"{value:.2g}"


def _between(found: Estimate, is_size: bool) -> str:
    """Format the interval; of a difference that is decided as sizes, the smaller first."""
    interval = found.interval()
    if interval is None:
        return ""
    if is_size and interval[0] * interval[1] > 0:
        low, high = sorted(map(abs, interval))
        return f" ({nats(low)} to {nats(high)})"
    return f" ({_signed(interval[0])} to {_signed(interval[1])})"


def _alone(found: Estimate, num_tests: int) -> str:
    """Say why nothing is decided though the interval, which is not corrected, has no 0 in it."""
    interval = found.interval()
    if interval is None or interval[0] * interval[1] <= 0:
        return ""
    return f", though it would be by this test alone: at 5 % for all {num_tests} together it is not"


def _signed(value: float) -> str:
    return f"{'−' if value < 0 else '+'}{nats(abs(value))}"


def _needed(decision: Decision) -> str:
    needed, found = decision.needed, decision.difference
    if needed is None:
        return ""
    ways: list[str] = []
    if needed.items:
        ways.append(f"{needed.items - found.num_items:,} more held-out rows")
    if needed.seeds:
        number = needed.seeds - found.num_seeds
        ways.append(f"{number:,} more seed{'' if number == 1 else 's'}")
    if not ways:
        return ": with one seed more rows would not, more seeds might" if found.num_seeds < 2 else ""
    return f": about {' or '.join(ways)} would, if it stays as it is"


def _trained_first(arms: Sequence[ArmFinding]) -> list[ArmFinding]:
    return sorted(arms, key=lambda each: not each.arm.trains)
