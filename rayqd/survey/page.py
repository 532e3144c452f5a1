"""docs/models.md: the rows of all architectures as a page."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from rayqd.config.sections import METHODS
from rayqd.survey.row import Row, Verdict

_MOST_NAMED = 4  # kinds of matrices in a cell

_INTRODUCTION = """\
# Models

What each causal architecture of transformers comes to in rayqd. The tables are written by a command, on tiny random
models:

```bash minutes
rayqd models --write docs/models.md     # all of them; goes on where it was stopped
rayqd models qwen3_moe path/to/model    # some, or the one that a config.json describes
```

Each is distilled for a step, exported and read back, in float32. Every number is held against transformers' own eager
forward pass of each row alone: the logits of rows together, those of the export, those that AWQ's scales leave before
anything is rounded, and the KL that a run and `rayqd eval` report. **Exact** are those for which all agree, within a
thousandth of the logits' size and 1e-4 nats. The others are refused in the line below, before anything starts. No list
of names decides it: before each run your own configuration is tried in the same way, and may come to something else
than the defaults that stand here.

- **rows**: packed end to end, the fast way; padded to one length; or alone, a call each, which on a GPU takes several
  times as long.
- **head**: what the model does to its logits, computed exactly in every loss.
- **experts**: whether those of a mixture are quantized and trained.
- **16 bits**: kinds of weights with more than one dimension that stay dense beside embedding and head: routers,
  convolutions, and what no reader loads in 4 bits.
- **no gradient**: layers that are quantized and not trained, as no gradient comes through them: what only chooses
  tokens (indexers), or serves rows longer than the dozens of tokens that are tried.
- **calibration**: which of GPTQ and AWQ go through the model layer by layer; without them a run starts from
  round-to-nearest (`quant.init = "rtn"`).
- **vLLM**: whether its registry has the class, for rollouts and for serving; where it has not, distil off-policy
  (`distill.lmbda = 0`).
"""


def make_page(rows: Sequence[Row], versions: str, num_left: int = 0) -> str:
    """Return the page of `rows`; `versions` says of what, `num_left` how many architectures are not among them."""
    rows = sorted(rows, key=lambda row: row.architecture)
    exact = [row for row in rows if row.verdict is Verdict.EXACT]
    left = f" {num_left} more were not tried." if num_left else ""
    parts = [_INTRODUCTION, f"{summarize(rows)}{left} With {versions}.\n", "## Exact\n", _table(_COLUMNS, exact)]
    for verdict, title in _OTHERS.items():
        others = [row for row in rows if row.verdict is verdict]
        if others:
            parts += [f"## {title}\n", _table({"architecture": _name, "words": _words}, others)]
    return "\n".join(parts)


def summarize(rows: Sequence[Row]) -> str:
    """Format `120 architectures: 98 exact (61 packed, 36 padded, 1 alone), 22 refused.`"""
    exact = [row for row in rows if row.verdict is Verdict.EXACT]
    ways = ", ".join(
        f"{count} {way}"
        for way in ("packed", "padded", "alone")
        if (count := sum(row.batching == way for row in exact))
    )
    others = [f"{count} {verdict}" for verdict in _OTHERS if (count := sum(row.verdict is verdict for row in rows))]
    return f"{len(rows)} architectures: {', '.join([f'{len(exact)} exact ({ways})', *others])}."


_OTHERS = {Verdict.REFUSED: "Refused", Verdict.WRONG: "Wrong", Verdict.FAILED: "Failed"}


def _name(row: Row) -> str:
    return f"`{row.architecture}`"


def _words(row: Row) -> str:
    return " ".join(row.words.replace("|", "\\|").split())


def _dense(row: Row) -> str:
    more = f" and {len(row.dense) - _MOST_NAMED} more" if len(row.dense) > _MOST_NAMED else ""
    return ", ".join(row.dense[:_MOST_NAMED]) + more


def _calibrations(row: Row) -> str:
    taken = [METHODS[name] for name, words in row.calibrations.items() if words == "exact"]
    return ", ".join(taken)


def _engine(row: Row) -> str:
    return {True: "yes", False: "no", None: "?"}[row.engine]


_COLUMNS: dict[str, Callable[[Row], str]] = {
    "architecture": _name,
    "class": lambda row: row.class_name,
    "rows": lambda row: row.batching,
    "head": lambda row: row.head,
    "experts": lambda row: row.experts,
    "16 bits": _dense,
    "no gradient": lambda row: ", ".join(row.untrained),
    "calibration": _calibrations,
    "vLLM": _engine,
}


def _table(columns: dict[str, Callable[[Row], str]], rows: Iterable[Row]) -> str:
    lines = ["| " + " | ".join(columns) + " |", "| " + " | ".join("---" for _ in columns) + " |"]
    lines += ["| " + " | ".join(cell(row) for cell in columns.values()) + " |" for row in rows]
    return "\n".join(lines) + "\n"
