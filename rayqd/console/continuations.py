"""Where the student goes on by itself, in the terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rayqd.metrics.bootstrap import Estimate
from rayqd.runs.continuations import Continuations, Positions

NOTE = (
    "KL to the teacher in nats a token and same top-1, at positions along the data's completions and along those that "
    "the student sampled itself; in brackets 95 % intervals, by bootstrap over the completions"
)


def continuation_lines(found: Continuations) -> Iterator[str]:
    """Yield the numbers by position, and how long teacher and student agree."""
    yield NOTE
    for title, positions in (("data", found.data), ("its own", found.own)):
        for each in positions:
            yield f"  {title:8}  tokens {span_text(each):9}  {kl_text(each)}  {share_text(each)}  {count_text(each)}"
    yield found.agreement


def span_text(each: Positions) -> str:
    """Format `8-15`, the first token's position being 0."""
    return f"{each.first}-{each.last}" if each.last > each.first else f"{each.first}"


def kl_text(each: Positions) -> str:
    """Format `0.1167 (0.1064-0.1333)`."""
    return f"{each.kl.value:.4f}{_between(each.kl, '.4f')}"


def share_text(each: Positions) -> str:
    """Format `82.2% (80.9%-83.7%)`."""
    return f"{each.top1_agreement.value:.1%}{_between(each.top1_agreement, '.1%')}"


def count_text(each: Positions) -> str:
    """Format `312 tokens of 40 completions`."""
    return f"{each.num_tokens:,} tokens of {each.num_rows:,} completion{'' if each.num_rows == 1 else 's'}"


def _between(found: Estimate, form: str) -> str:
    interval = found.interval
    return f" ({interval.low:{form}}-{interval.high:{form}})" if interval else ""


def sides(found: Continuations) -> Sequence[tuple[str, Sequence[Positions]]]:
    """Return both kinds of completions, by what they are called."""
    return ("the data's", found.data), ("the student's own", found.own)
