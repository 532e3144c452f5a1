"""The verdict of a comparison in words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rayqd.comparison.findings import ArmFinding, Findings
from rayqd.comparison.grouped_verdict import Against, group, nats
from rayqd.config.sections.compare import Budget
from rayqd.statistics.crossed import Estimate
from rayqd.statistics.decision import Decision

_PHRASES: dict[Budget, str] = {
    "steps": "{amount} steps",
    "tokens": "{amount} tokens",
    "accelerator-seconds": "{amount} accelerator-seconds",
    "wall-clock": "{amount} seconds",
}


# More arms than these are not told one after the other, but by what was decided of them.
MOST_IN_FULL = 4


def sentence(findings: Findings) -> str:
    """Return what is decided of the trained arms, and how the others stand."""
    decided = [(each, each.decision) for each in _trained_first(findings.arms) if each.decision]
    if not decided:
        return "Nothing is decided: no two arms have a result."
    if len(decided) > MOST_IN_FULL:
        text = group([(each.arm.name, decision) for each, decision in decided], _against(findings), "held-out rows")
    else:
        text = "; ".join(describe_arm(each, findings) for each, _ in decided)
    return f"{text[0].upper()}{text[1:]}."


def own_sentence(findings: Findings) -> str:
    """Return what is decided along the text that each student wrote; empty where that was not to be measured."""
    if not findings.own_texts:
        return ""
    found = [(each, each.own_text) for each in _trained_first(findings.arms) if each.own_text]
    decided = [(each, own, own.decision) for each, own in found if own.decision]
    parts = [
        _describe(each.arm.name, own.kl, decision, findings, _Words(num_tests=len(decided), items="prompts"))
        for each, own, decision in decided
    ]
    why = "no two arms were measured"
    if len(found) > 1 and not findings.reference.own_text:
        why = f"{findings.reference.arm.name}, which they are held against, was not measured"
    text = "; ".join(parts) if parts else f"nothing is decided: {why}"
    if len(decided) > MOST_IN_FULL:
        text = group([(each.arm.name, decision) for each, _, decision in decided], _against(findings), "prompts")
    return f"Along the text that each student writes itself: {text}."


def own_evidence(findings: Findings) -> str:
    """Return what those numbers rest on; empty where there are none."""
    own = findings.own_texts
    if not own:
        return ""
    lengths = [each.own_text.num_tokens for each in findings.arms if each.own_text]
    between = f" (by arm {min(lengths):,.0f} to {max(lengths):,.0f} on average)" if lengths else ""
    return (
        f"There {own.num_prompts:,} prompts of held-out rows are continued by each student itself, sampled at "
        f"temperature 1, by at most {own.max_new_tokens:,} tokens{between}; intervals and tests over prompts and "
        "seeds, with Holm's correction over these."
    )


def _against(findings: Findings) -> Against:
    return Against(name=findings.reference.arm.name, margin=findings.spec.compare.margin)


def describe_arm(finding: ArmFinding, findings: Findings) -> str:
    """Return `on-policy is worse than off-policy by 0.012 nats (0.004 to 0.020)`."""
    assert finding.decision is not None
    words = _Words(num_tests=sum(1 for each in findings.arms if each.decision), items="held-out rows")
    return _describe(finding.arm.name, finding.kl, finding.decision, findings, words)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Words:
    num_tests: int  # that were corrected together
    items: str


def _describe(name: str, kl: Estimate | None, decision: Decision, findings: Findings, words: _Words) -> str:
    reference = findings.reference.arm.name
    size = nats(abs(decision.difference.value))
    match decision.outcome:
        case "better" | "worse":
            return f"{name} is {decision.outcome} than {reference} by {size} nats{_between(decision.difference, True)}"
        case "equivalent":
            margin = f"{findings.spec.compare.margin:g}"
            ends = _between(decision.difference, False)
            return f"{name} and {reference} are equivalent within ±{margin} nats{ends}"
        case "not decided" if not decision.difference.is_finite:
            whose = name if kl and not kl.is_finite else reference
            return f"whether {name} is better than {reference} is not decided: the KL of {whose} is not finite"
        case "not decided":
            ends = _between(decision.difference, False)
            more = f"{_alone(decision.difference, words.num_tests)}{_needed(decision, words.items)}"
            return f"whether {name} is better than {reference} is not decided{ends}{more}"


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


def _needed(decision: Decision, items: str) -> str:
    needed, found = decision.needed, decision.difference
    if needed is None:
        return ""
    ways: list[str] = []
    if needed.items:
        ways.append(f"{needed.items - found.num_items:,} more {items}")
    if needed.seeds:
        number = needed.seeds - found.num_seeds
        ways.append(f"{number:,} more seed{'' if number == 1 else 's'}")
    if not ways:
        return f": with one seed more {items.split()[-1]} would not, more seeds might" if found.num_seeds < 2 else ""
    return f": about {' or '.join(ways)} would, if it stays as it is"


def _trained_first(arms: Sequence[ArmFinding]) -> list[ArmFinding]:
    return sorted(arms, key=lambda each: not each.arm.trains)
