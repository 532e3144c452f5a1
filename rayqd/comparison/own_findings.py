"""What is decided of the arms along the text that their students wrote: other tokens in each arm, the same prompts.

Letters: S seeds, R prompts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from rayqd.comparison.outcomes import ArmOutcome
from rayqd.comparison.own_text import OwnTexts
from rayqd.metrics.fidelity import ByRow
from rayqd.statistics.crossed import Cells, Estimate, difference_of_ratios, ratio_of_sums
from rayqd.statistics.decision import Decision, decide


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnFinding:
    """One arm along its own text."""

    kl: Estimate  # nats a token, over prompts and seeds
    decision: Decision | None  # against the reference; None of that itself, and where it has not been measured
    top1_agreement: float  # share of all tokens
    num_tokens: float  # of a completion, the mean


def find_own(
    outcomes: Sequence[ArmOutcome], reference: ArmOutcome, own_texts: OwnTexts, margin: float
) -> dict[str, OwnFinding]:
    """Judge the arms that were measured, by name; differences are tested with Holm's correction over them."""
    found = {outcome.arm.name: measured for outcome in outcomes if (measured := _by_seed(outcome, own_texts))}
    against = found.get(reference.arm.name, {})
    differences = {
        name: difference
        for name, by_seed in found.items()
        if name != reference.arm.name and (difference := _difference(by_seed, against))
    }
    decisions = dict(zip(differences, decide(list(differences.values()), margin), strict=True))
    return {name: _find(by_seed, decisions.get(name)) for name, by_seed in found.items()}


def common_seeds(of_one: Sequence[int | None], of_other: Sequence[int | None]) -> Sequence[int | None]:
    """Return the seeds of both; an arm that no seed changes goes with every seed of the other."""
    if of_one == [None]:
        return of_other
    if of_other == [None]:
        return of_one
    return [seed for seed in of_one if seed in of_other]


def _by_seed(outcome: ArmOutcome, own_texts: OwnTexts) -> dict[int | None, ByRow]:
    runs = [run for run in outcome.runs if run.row and run.job.name in own_texts.by_run]
    return {run.job.seed: own_texts.by_run[run.job.name] for run in runs}


def _find(by_seed: Mapping[int | None, ByRow], decision: Decision | None) -> OwnFinding:
    kl, tokens = _sums(by_seed, list(by_seed))
    agrees = sum(sum(rows.agrees) for rows in by_seed.values())
    return OwnFinding(
        kl=ratio_of_sums(kl, tokens),
        decision=decision,
        top1_agreement=agrees / float(tokens.sum()),
        num_tokens=float(tokens.mean()),
    )


def _difference(one: Mapping[int | None, ByRow], other: Mapping[int | None, ByRow]) -> Estimate | None:
    """Estimate KL(one) - KL(other), each over its own tokens, over the seeds of both; None where there are none."""
    seeds = common_seeds(list(one), list(other))
    return difference_of_ratios(_sums(one, seeds), _sums(other, seeds)) if seeds else None


def _sums(by_seed: Mapping[int | None, ByRow], seeds: Sequence[int | None]) -> tuple[Cells, Cells]:
    """Return KL and tokens of each completion, [S, R] each; of an arm that no seed changes the same for all."""
    rows = [by_seed[seed if seed in by_seed else None] for seed in seeds]
    kl = np.array([each.kl for each in rows], dtype=np.float64)
    return kl, np.array([each.num_tokens for each in rows], dtype=np.float64)
