"""What a comparison decides: of each arm its KL, the share of rounding's damage that is back, and its difference to the
arm that all are held against, each over held-out rows and seeds together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from rayqd.comparison.cost import Cost, add_costs
from rayqd.comparison.outcomes import ArmOutcome, check_same_rows, read_curve
from rayqd.comparison.own_findings import OwnFinding, common_seeds, find_own
from rayqd.comparison.own_text import OwnTexts
from rayqd.config.comparison import ArmSpec, ComparisonSpec
from rayqd.metrics.fidelity import Fidelity
from rayqd.statistics.bootstrap import crossed_interval
from rayqd.statistics.crossed import Cells, Estimate, ratio_of_sums
from rayqd.statistics.decision import Decision, decide


@dataclass(frozen=True, slots=True, kw_only=True)
class ArmFinding:
    """One arm."""

    outcome: ArmOutcome
    kl: Estimate | None  # nats a token; None where no run of it has finished
    bootstrap: tuple[float, float] | None  # of the KL where it is finite, over rows and seeds together
    recovered: Estimate | None  # (arm - RTN) / (teacher - RTN) of the KL; of RTN 0, of the teacher 1
    decision: Decision | None  # against the reference; None of that itself, of the teacher, and without a result
    top1_agreement: float | None  # mean over the seeds, as the next two
    perplexity: float | None
    bits_per_weight: float | None  # over the whole model, of the first run that has finished
    cost: Cost | None  # of all its finished runs
    num_seeds: int  # that have finished
    own_text: OwnFinding | None = None  # along what its students wrote; None where that was not measured

    @property
    def arm(self) -> ArmSpec:
        """Return what the arm is."""
        return self.outcome.arm


@dataclass(frozen=True, slots=True, kw_only=True)
class Findings:
    """All of it."""

    name: str  # of the comparison
    spec: ComparisonSpec
    amount: float  # of the budget
    arms: tuple[ArmFinding, ...]  # in their order
    num_rows: int
    num_tokens: int  # held out
    own_texts: OwnTexts | None = None  # None without eval.continuations

    @property
    def reference(self) -> ArmFinding:
        """Return the arm that the others are held against."""
        return next(each for each in self.arms if each.arm.name == self.spec.reference.name)

    @property
    def failed(self) -> list[ArmFinding]:
        """Return the arms of which a run failed."""
        return [each for each in self.arms if each.outcome.failed]


def find(spec: ComparisonSpec, outcomes: Sequence[ArmOutcome], own_texts: OwnTexts | None = None) -> Findings:
    """Judge the arms, also along their own text where that was measured.

    Raises RunError where they were not measured on the same rows.
    """
    check_same_rows(outcomes)
    by_name = {outcome.arm.name: outcome for outcome in outcomes}
    rounded = next(outcome for outcome in outcomes if outcome.arm.kind == "rtn" and not outcome.arm.values)
    reference = by_name[spec.reference.name]
    rows = next((f.by_row for outcome in outcomes for f in outcome.fidelities.values() if f.by_row), None)
    differences = {o.arm.name: d for o in outcomes if o is not reference and (d := _difference(o, reference))}
    decisions = dict(zip(differences, decide(list(differences.values()), spec.compare.margin), strict=True))
    base = spec.config()
    own = find_own(outcomes, reference, own_texts, spec.compare.margin) if own_texts else {}
    return Findings(
        name=base.name,
        spec=spec,
        amount=spec.compare.amount or base.learner.steps,
        arms=tuple(
            replace(_find_arm(o, rounded, decisions.get(o.arm.name)), own_text=own.get(o.arm.name)) for o in outcomes
        ),
        num_rows=len(rows.num_tokens) if rows else 0,
        num_tokens=sum(rows.num_tokens) if rows else 0,
        own_texts=own_texts,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class CurvePoint:
    """What an arm had come to after so many tokens, over its seeds."""

    tokens: float  # trained on, mean over the seeds
    kl: Estimate  # nats a token


def find_curve(arm: ArmOutcome) -> list[CurvePoint]:
    """Return the evaluations of an arm that all of its finished runs have."""
    curves = [read_curve(run) for run in arm.runs if run.result]
    points: list[CurvePoint] = []
    for step in sorted(set.intersection(*map(set, curves))) if curves else []:
        found = [curve[step] for curve in curves]
        rows = [fidelity.by_row for _, fidelity in found if fidelity.by_row]
        if len(rows) == len(found) and len({row.num_tokens for row in rows}) == 1:
            kl = np.array([row.kl for row in rows], dtype=np.float64)
            tokens = np.broadcast_to(np.array(rows[0].num_tokens, dtype=np.float64), kl.shape)
            mean = sum(count for count, _ in found) / len(found)
            points.append(CurvePoint(tokens=mean, kl=ratio_of_sums(kl, tokens)))
    return points


def _find_arm(outcome: ArmOutcome, rounded: ArmOutcome, decision: Decision | None) -> ArmFinding:
    fidelities = list(outcome.fidelities.values())
    costs = [cost for run in outcome.runs if (cost := run.cost)]
    rows = [run.row for run in outcome.runs if run.row]
    if outcome.arm.kind == "teacher":  # every run has measured it
        rows = [run.result.teacher for run in rounded.runs if run.result]
    perplexities = [row.fidelity.perplexity for row in rows]
    kl = bootstrap = None
    if fidelities:
        cells = _kl(outcome, list(outcome.fidelities))
        tokens = np.broadcast_to(_tokens(fidelities[0]), cells.shape)
        kl = ratio_of_sums(cells, tokens)
        bootstrap = crossed_interval(cells, tokens) if kl.is_finite else None
    return ArmFinding(
        outcome=outcome,
        kl=kl,
        bootstrap=bootstrap,
        recovered=_recovered(outcome, rounded),
        decision=decision,
        top1_agreement=_mean([fidelity.top1_agreement for fidelity in fidelities]),
        perplexity=_mean(perplexities),
        bits_per_weight=next((row.bits_per_weight for row in rows), None),
        cost=add_costs(costs) if costs else None,
        num_seeds=len(fidelities),
    )


def _difference(arm: ArmOutcome, reference: ArmOutcome) -> Estimate | None:
    """Estimate KL(arm) - KL(reference) over the seeds that both have; None where there are none."""
    seeds = _common_seeds(arm, reference)
    if not seeds:
        return None
    with np.errstate(invalid="ignore"):  # of two that are infinite
        kl = _kl(arm, seeds) - _kl(reference, seeds)
    tokens = _tokens(next(iter(reference.fidelities.values())))
    return ratio_of_sums(kl, np.broadcast_to(tokens, kl.shape))


def _recovered(arm: ArmOutcome, rounded: ArmOutcome) -> Estimate | None:
    """Estimate (KL(arm) - KL(RTN)) / (0 - KL(RTN)); None where either is missing, or rounding costs nothing."""
    seeds = _common_seeds(arm, rounded)
    if not seeds:
        return None
    damage = _kl(rounded, seeds)
    with np.errstate(invalid="ignore"):
        back = damage - _kl(arm, seeds)
    return ratio_of_sums(back, damage) if damage.sum() else None


def _common_seeds(one: ArmOutcome, other: ArmOutcome) -> Sequence[int | None]:
    """Return the seeds of both; an arm that no seed changes goes with every seed of the other."""
    return common_seeds(list(one.fidelities), list(other.fidelities))


def _kl(arm: ArmOutcome, seeds: Sequence[int | None]) -> Cells:
    """Return the KL summed over each row's tokens, [S, R]; of an arm that no seed changes the same for all."""
    found = arm.fidelities
    rows = [found[seed if seed in found else None].by_row for seed in seeds]
    return np.array([row.kl for row in rows if row], dtype=np.float64)


def _tokens(fidelity: Fidelity) -> Cells:
    assert fidelity.by_row, "checked with the rows"
    return np.array(fidelity.by_row.num_tokens, dtype=np.float64)


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
