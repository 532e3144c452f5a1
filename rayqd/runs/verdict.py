"""What a run came to, in a sentence: what rounding costs, and how much of it is back, each with its interval.

The intervals are paired bootstraps over the held-out rows (`rayqd/metrics/bootstrap.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from rayqd.events import ArmKind, ArmResult
from rayqd.metrics.bootstrap import LEAST_ROWS, Estimate, change, estimate, ratio, recovered
from rayqd.metrics.fidelity import Fidelity

_METHODS = {
    ArmKind.GPTQ: "GPTQ",
    ArmKind.AWQ: "AWQ",
    ArmKind.AUTOROUND: "AutoRound",
    ArmKind.DISTILLED: "distilling",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Left:
    """What one method leaves of the distance to the teacher."""

    method: str
    kl: Estimate  # nats a token


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What a run came to."""

    rounding: Estimate  # KL of round-to-nearest, nats a token
    left: tuple[Left, ...]  # by the other methods, the run's own last
    recovered: Estimate | None  # share of rounding's KL that is gone; None where rounding is all there is
    against: Left | None  # the best method without training
    change: Estimate | None  # of KL against that one, relative
    num_rows: int | None  # None in runs from before rows were kept
    num_tokens: int
    unchanged: str = ""  # the method whose rows the run's own has to the last digit

    @property
    def sentence(self) -> str:
        """Return the whole of it."""
        return " ".join(filter(None, (self.cost, self.comparison, self.evidence)))

    @property
    def cost(self) -> str:
        """Return what rounding costs, what each method leaves of that, and the share that is back."""
        rounding = f"Rounding to nearest costs {_nats(self.rounding)} nats of KL to the teacher a token"
        if not self.left:
            return f"{rounding}{between(self.rounding)}."
        first, *others = (f"{_nats(each.kl)}{between(each.kl)}" for each in self.left)
        first = f"{_capital(self.left[0].method)} leaves {first}"
        left = ", ".join([first, *(f"{m.method} {text}" for m, text in zip(self.left[1:], others, strict=True))])
        return f"{rounding}{between(self.rounding)}. {left}: {self._recovery()}."

    def _recovery(self) -> str:
        found = self.recovered
        if found is None:
            return "rounding costs nothing that they could bring back"
        if found.interval and not found.interval.excludes(0.0):
            return f"whether any of the damage is back is not decided ({_percents(found)})"
        if found.value <= 0:
            return f"none of the damage is back, {_percent(-found.value)} came on top"
        return f"{_percent(found.value)} of the damage is back{_percents_between(found)}"

    @property
    def comparison(self) -> str:
        """Return how the run's own method compares with the best one without training; empty where there is none."""
        if self.unchanged:
            return (
                f"{_capital(self.left[-1].method)} computes what {self.unchanged} does, to the last digit of every "
                "row: no weight that matters has come as far as another code, which takes more steps (learner.steps) "
                "or longer ones (learner.lr)."
            )
        if self.change is None or self.against is None:
            return ""
        own, other, interval = _capital(self.left[-1].method), self.against.method, self.change.interval
        if interval and not interval.excludes(0.0):
            low, high = 100 * interval.low, 100 * interval.high
            return f"Whether {own.lower()} leaves less than {other} is not decided ({low:+.0f} to {high:+.0f} %)."
        less = "less" if self.change.value < 0 else "more"
        size = Estimate(value=abs(self.change.value), interval=interval)
        return f"{own} leaves {_percent(size.value)} {less} than {other}{_percents_between(size)}."

    @property
    def evidence(self) -> str:
        """Return what the numbers rest on."""
        tokens = f"{self.num_tokens:,} tokens"
        if self.num_rows is None:
            return f"Measured on {tokens}, without intervals."
        rows = f"{self.num_rows} held-out row{'' if self.num_rows == 1 else 's'} of {tokens}"
        if self.num_rows < LEAST_ROWS:
            return f"{_capital(rows)} are too few for an interval: eval.num_rows asks for more."
        return f"In brackets: 95 % intervals, by paired bootstrap over {rows}."

    def to_json(self) -> dict[str, object]:
        """Return what result.json holds of it."""
        fields: dict[str, object] = {
            "sentence": self.sentence,
            "rounding": self.rounding.to_json(),
            "left": {each.method: each.kl.to_json() for each in self.left},
        }
        if self.recovered:
            fields["recovered"] = self.recovered.to_json()
        if self.change and self.against:
            fields["change"] = {"against": self.against.method, **self.change.to_json()}
        return fields


def make_verdict(rows: Sequence[ArmResult]) -> Verdict | None:
    """Judge a result's rows; None where nothing was rounded to nearest."""
    rounded = next((row for row in rows if row.arm.kind is ArmKind.RTN), None)
    if rounded is None:
        return None
    others = [row for row in rows if row.arm.kind in _METHODS]
    left = tuple(Left(method=_METHODS[row.arm.kind], kl=estimate_kl(row.fidelity)) for row in others)
    own = others[-1] if others else None
    against = _best_without_training(others[:-1])
    before = {_METHODS.get(arm.arm.kind, "rounding to nearest"): arm for arm in (rounded, *others[:-1])}
    return Verdict(
        rounding=estimate_kl(rounded.fidelity),
        left=left,
        recovered=_compare(recovered, rounded, own) if own else None,
        against=Left(method=_METHODS[against.arm.kind], kl=estimate_kl(against.fidelity)) if against else None,
        change=_compare(change, against, own) if own and against else None,
        num_rows=len(rounded.fidelity.by_row.num_tokens) if rounded.fidelity.by_row else None,
        num_tokens=rounded.fidelity.num_tokens,
        unchanged=next((name for name, arm in before.items() if own and _are_same(own, arm)), ""),
    )


def estimate_kl(fidelity: Fidelity) -> Estimate:
    """Return the KL to the teacher, nats a token, with its interval where the rows are known."""
    rows = fidelity.by_row
    interval = estimate(ratio, rows.kl, rows.num_tokens).interval if rows else None
    return Estimate(value=fidelity.kl_to_teacher, interval=interval)


def _are_same(own: ArmResult, other: ArmResult) -> bool:
    rows = own.fidelity.by_row
    return own.arm.kind is ArmKind.DISTILLED and rows is not None and rows == other.fidelity.by_row


def compare_kl(before: Fidelity, after: Fidelity) -> Estimate | None:
    """Return the relative change of the KL between two models on the same rows; None where `before` has none."""
    return _estimate_pair(change, before, after)


def between(found: Estimate) -> str:
    """Format ` (0.338 to 0.401)`; empty where there is no interval."""
    interval = found.interval
    return f" ({_number(interval.low)} to {_number(interval.high)})" if interval else ""


def _best_without_training(others: Sequence[ArmResult]) -> ArmResult | None:
    return min(others, key=lambda row: row.fidelity.kl_to_teacher, default=None)


def _compare(statistic: Callable[..., Any], before: ArmResult, after: ArmResult) -> Estimate | None:
    return _estimate_pair(statistic, before.fidelity, after.fidelity)


def _estimate_pair(statistic: Callable[..., Any], before: Fidelity, after: Fidelity) -> Estimate | None:
    if before.kl_to_teacher <= 0:
        return None
    value = float(statistic(before.kl_to_teacher, after.kl_to_teacher))
    one, other = before.by_row, after.by_row
    if one is None or other is None or one.num_tokens != other.num_tokens:  # not of the same rows
        return Estimate(value=value, interval=None)
    return Estimate(value=value, interval=estimate(statistic, one.kl, other.kl).interval)


def _nats(found: Estimate) -> str:
    return _number(found.value)


def _number(value: float) -> str:
    """Three decimals, or as many as show two digits."""
    return f"{value:.3f}" if abs(value) >= 0.0095 or value == 0 else f"{value:.2g}"


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def _percents(found: Estimate) -> str:
    assert found.interval
    return f"{100 * found.interval.low:.0f} to {100 * found.interval.high:.0f} %"


def _percents_between(found: Estimate) -> str:
    """Format ` (66 to 70 %)`; of a decrease the sizes, the smaller one first."""
    if found.interval is None:
        return ""
    ends = sorted(abs(100 * end) for end in (found.interval.low, found.interval.high))
    return f" ({ends[0]:.0f} to {ends[1]:.0f} %)"


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
