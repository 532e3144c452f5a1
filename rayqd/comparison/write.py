"""What a comparison leaves: compare.json, compare.md, compare.html, and each figure as an SVG of its own."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from rayqd.comparison.cells import MADE_ELSEWHERE, cells_of
from rayqd.comparison.cost import Cost
from rayqd.comparison.directory import ComparisonDirectory
from rayqd.comparison.findings import ArmFinding, Findings
from rayqd.comparison.jobs import Jobs
from rayqd.comparison.own_findings import OwnFinding
from rayqd.comparison.page import render_page
from rayqd.comparison.verdict import budget_text, evidence, own_evidence, own_sentence, sentence
from rayqd.files import write_text
from rayqd.report.beside import list_figures
from rayqd.statistics.crossed import Estimate
from rayqd.statistics.decision import Decision

JSON, MARKDOWN, PAGE, FIGURES = "compare.json", "compare.md", "compare.html", "figures"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Result:
    content: Mapping[str, object]

    def to_json(self) -> Mapping[str, object]:
        return self.content


def write_findings(findings: Findings, jobs: Jobs, directory: ComparisonDirectory, price: float | None) -> None:
    """Write all of it into the comparison's directory. Raises StorageError."""
    content = to_json(findings, price)
    write_text(directory.path / JSON, json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    write_text(directory.path / MARKDOWN, to_markdown(findings, price))
    page = render_page(findings, jobs.base, directory.path, price)
    write_text(directory.path / PAGE, page)
    (directory.path / FIGURES).mkdir(exist_ok=True)
    for name, text in list_figures(page):
        write_text(directory.path / FIGURES / name, text)
    directory.finish(_Result(content=content))


def to_json(findings: Findings, price: float | None) -> dict[str, object]:
    """Return all of it for programs: a function of what the runs left alone."""
    compare = findings.spec.compare
    return {
        "name": findings.name,
        "verdict": sentence(findings),
        "evidence": evidence(findings),
        "budget": {"kind": compare.budget, "amount": findings.amount},
        "seeds": list(compare.seeds),
        "margin": compare.margin,
        "reference": findings.reference.arm.name,
        "num_rows": findings.num_rows,
        "num_tokens": findings.num_tokens,
        **({"own_text": _own_texts(findings)} if findings.own_texts else {}),
        "arms": [_arm(each, price) for each in findings.arms],
    }


def to_markdown(findings: Findings, price: float | None) -> str:
    """Return the verdict and the table."""
    reference = findings.reference.arm.name
    own = findings.own_texts
    head = ["", "KL to teacher", "back", f"against {reference}", ""]
    head += ["KL on own text", f"there against {reference}", ""] if own else []
    head += ["same top-1", "perplexity", "bits/weight", "seeds", "steps", "tokens", "time", "accelerator-seconds"]
    head += ["cost"] if price is not None else []
    lines = [f"| {' | '.join(head)} |", f"| --- |{' ---: |' * (len(head) - 1)}"]
    for finding in findings.arms:
        c = cells_of(finding, findings, price)
        beside: list[str] = []
        if own:
            difference = _with(c.own_difference, c.own_difference_interval)
            beside = [_with(c.own_kl, c.own_kl_interval), difference, c.own_verdict]
        texts = [
            c.arm, _with(c.kl, c.kl_interval), _with(c.recovered, c.recovered_interval),
            _with(c.difference, c.difference_interval), c.verdict, *beside, c.top1, c.perplexity, c.bits, c.seeds,
            c.steps, c.tokens, c.time, c.accelerator_seconds, *([c.money] if price is not None else []),
        ]  # fmt: skip
        lines.append(f"| {' | '.join(texts)} |")
    note = (
        "KL(teacher‖arm) in nats a token; back: the share of rounding's damage that is gone; time, accelerator-seconds "
        "and cost are of one seed, the mean, idle included; bits/weight are over the whole model."
    )
    title = f"# {findings.name}: {budget_text(findings)}"
    failed = [f"{run.job.name} failed: {run.error}" for arm in findings.failed for run in arm.outcome.failed]
    failed += [f"{name}: its own text was not measured: {why}" for name, why in (own.errors if own else {}).items()]
    said = [sentence(findings), own_sentence(findings), evidence(findings), own_evidence(findings)]
    parts = [title, *filter(None, said), "\n".join(lines), note, *failed]
    return "\n\n".join(parts) + "\n"


def _with(text: str, interval: str) -> str:
    return f"{text} ({interval})" if interval else text


def _arm(finding: ArmFinding, price: float | None) -> dict[str, object]:
    return {
        "name": finding.arm.name,
        "kind": finding.arm.kind,
        **({"path": finding.arm.path} if finding.arm.path else {}),
        "settings": {key: _plain(value) for key, value in finding.arm.settings.items()},
        "kl_to_teacher": _estimate(finding.kl),
        "bootstrap": list(finding.bootstrap) if finding.bootstrap else None,
        "recovered": _estimate(finding.recovered),
        "decision": _decision(finding.decision) if finding.decision else None,
        **({"own_text": _own_text(finding.own_text)} if finding.own_text else {}),
        "top1_agreement": _number(finding.top1_agreement),
        "perplexity": _number(finding.perplexity),
        "bits_per_weight": _number(finding.bits_per_weight),
        "runs": [
            {"name": run.job.name, "seed": run.job.seed, "state": run.state, "error": run.error or None, "log": run.log}
            for run in finding.outcome.runs
        ],
        "cost": _cost(finding.cost, price) if finding.cost else None,
        **({"made": MADE_ELSEWHERE} if finding.arm.is_made_elsewhere else {}),
    }


def _own_texts(findings: Findings) -> dict[str, object]:
    own = findings.own_texts
    assert own is not None
    return {
        "verdict": own_sentence(findings),
        "evidence": own_evidence(findings),
        "num_prompts": own.num_prompts,
        "max_new_tokens": own.max_new_tokens,
        "errors": dict(own.errors),
    }


def _own_text(found: OwnFinding) -> dict[str, object]:
    return {
        "kl_to_teacher": _estimate(found.kl),
        "decision": _decision(found.decision) if found.decision else None,
        "top1_agreement": found.top1_agreement,
        "tokens_per_completion": found.num_tokens,
    }


def _estimate(found: Estimate | None) -> dict[str, object] | None:
    if found is None:
        return None
    interval = found.interval()
    return {
        "value": _number(found.value),
        "low": interval[0] if interval else None,
        "high": interval[1] if interval else None,
    }


def _number(value: float | None) -> float | None:
    """Return None for what JSON has no word for."""
    return value if value is not None and math.isfinite(value) else None


def _decision(decision: Decision) -> dict[str, object]:
    return {
        "outcome": decision.outcome,
        "difference": _estimate(decision.difference),
        "p_different": decision.p_different,
        "p_equivalent": decision.p_equivalent,
        "needed": asdict(decision.needed) if decision.needed else None,
    }


def _cost(cost: Cost, price: float | None) -> dict[str, object]:
    money = {"money": round(cost.price(price), 4)} if price is not None else {}
    return {
        "seconds": cost.seconds,
        "parts": dict(cost.parts),
        "roles": {name: asdict(role) for name, role in cost.roles.items()},
        "accelerator_seconds": round(cost.accelerator_seconds, 1),
        "trained_tokens": cost.trained_tokens,
        "steps": cost.steps,
        **money,
    }


def _plain(value: object) -> object:
    return str(value) if isinstance(value, Path) else value
