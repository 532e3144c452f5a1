"""An arm's line in a table, as text: the terminal, the Markdown file and the page have the same."""

from __future__ import annotations

import math
from dataclasses import dataclass

from rayqd.comparison.cost import Cost
from rayqd.comparison.findings import ArmFinding, Findings
from rayqd.console.progress import duration
from rayqd.statistics.crossed import Estimate

MADE_ELSEWHERE = "made elsewhere"  # in place of what it took


@dataclass(frozen=True, slots=True, kw_only=True)
class Cells:
    """An arm's numbers; "" or a dash where there are none. Time and money are of one seed, the mean."""

    arm: str
    kl: str
    kl_interval: str
    recovered: str
    recovered_interval: str
    difference: str
    difference_interval: str
    verdict: str
    own_kl: str  # along the arm's own text, as the next four
    own_kl_interval: str
    own_difference: str
    own_difference_interval: str
    own_verdict: str
    top1: str
    perplexity: str
    bits: str  # of a weight, over the whole model
    seeds: str
    steps: str
    tokens: str
    time: str
    accelerator_seconds: str
    money: str


def cells_of(finding: ArmFinding, findings: Findings, price: float | None) -> Cells:
    """Return the line of an arm. `price` is of an accelerator an hour."""
    decision, cost, num = finding.decision, finding.cost, max(1, finding.num_seeds)
    difference = decision.difference if decision else None
    own, own_decision = finding.own_text, finding.own_text.decision if finding.own_text else None
    own_difference = own_decision.difference if own_decision else None
    is_teacher = finding.arm.kind == "teacher"
    trains = finding.arm.trains and cost is not None
    is_elsewhere = finding.arm.is_made_elsewhere
    return Cells(
        arm=finding.arm.name,
        kl="0.0000" if is_teacher else f"{finding.kl.value:.4f}" if finding.kl else "-",
        kl_interval=_between(finding.kl, ".4f"),
        recovered="100 %" if is_teacher else _share(finding.recovered),
        recovered_interval=_percents(finding.recovered),
        difference=_difference(difference),
        difference_interval=_between(difference, "+.4f"),
        verdict=_verdict(finding, findings),
        own_kl="0.0000" if is_teacher else f"{own.kl.value:.4f}" if own else "-",
        own_kl_interval=_between(own.kl if own else None, ".4f"),
        own_difference=_difference(own_difference),
        own_difference_interval=_between(own_difference, "+.4f"),
        own_verdict=_own_verdict(finding, findings),
        top1="100.0%" if is_teacher else _or_dash(finding.top1_agreement, ".1%"),
        perplexity=_or_dash(finding.perplexity, ".3f"),
        bits=_or_dash(finding.bits_per_weight, ".4g"),
        seeds=str(finding.num_seeds) if finding.arm.command else "",
        steps=f"{cost.steps / num:,.0f}" if trains and cost else "",
        tokens=f"{cost.trained_tokens / num:,.0f}" if trains and cost else "",
        time=MADE_ELSEWHERE if is_elsewhere else duration(cost.seconds / num) if cost else "",
        accelerator_seconds=f"{cost.accelerator_seconds / num:,.0f}" if cost else "-" if is_elsewhere else "",
        money=MADE_ELSEWHERE if is_elsewhere else _money(cost, price, num),
    )


def _money(cost: Cost | None, price: float | None, num_seeds: int) -> str:
    return f"{cost.price(price) / num_seeds:,.2f}" if cost and price is not None else ""


def _verdict(finding: ArmFinding, findings: Findings) -> str:
    if finding.outcome.failed and not finding.kl:
        return "failed"
    found = finding.decision.outcome if finding.decision else ""
    if finding.kl and not finding.kl.is_finite:
        found = "not finite"
    text = found or "reference" if finding is findings.reference else found
    return f"{text}, {len(finding.outcome.failed)} failed" if finding.outcome.failed else text


def _own_verdict(finding: ArmFinding, findings: Findings) -> str:
    own = finding.own_text
    if own is None:
        return "" if finding.arm.kind == "teacher" else "not measured"
    if not own.kl.is_finite:
        return "not finite"
    return own.decision.outcome if own.decision else "reference" if finding is findings.reference else ""


def _between(found: Estimate | None, form: str) -> str:
    interval = found.interval() if found else None
    return f"{interval[0]:{form}} to {interval[1]:{form}}" if interval and interval[0] < interval[1] else ""


def _difference(found: Estimate | None) -> str:
    if found is None:
        return ""
    return f"{found.value:+.4f}" if math.isfinite(found.value) else "-"


def _percents(found: Estimate | None) -> str:
    interval = found.interval() if found else None
    return f"{100 * interval[0]:.0f} to {100 * interval[1]:.0f} %" if interval and interval[0] < interval[1] else ""


def _share(found: Estimate | None) -> str:
    return f"{100 * found.value:.0f} %" if found and math.isfinite(found.value) else "-"


def _or_dash(value: float | None, form: str) -> str:
    return "-" if value is None else f"{value:{form}}"
