"""The recipe study's table, as Markdown on the terminal, and its curves, as a picture.

python tune/recipes_report.py OUT_DIR/results.jsonl PICTURE.svg
"""

from __future__ import annotations

import json
import statistics
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

TITLES = {"gsm8k": "GSM8K", "wikitext": "WikiText-2"}
CURVES = {
    "adapter-r32-from-rtn": ("adapters, from RTN", "tab:blue", "--"),
    "adapter-r32": ("adapters, from GPTQ", "tab:blue", "-"),
    "adapter-r32-from-autoround-package-half-lr": ("adapters, from AutoRound", "tab:blue", ":"),
    "full-from-rtn": ("all weights, from RTN", "tab:red", "--"),
    "full": ("all weights, from GPTQ", "tab:red", "-"),
    "full-from-autoround-package": ("all weights, from AutoRound", "tab:red", ":"),
}
BASELINES = {"gptq": "GPTQ", "awq": "AWQ", "autoround-package": "AutoRound"}

Records = dict[str, dict[int, list[Any]]]  # lines of results.jsonl by arm and seed, in order of steps


def read_records(path: Path) -> Records:
    """Read what tune/recipes.py wrote."""
    records: Records = defaultdict(lambda: defaultdict(list))
    for line in path.read_text().splitlines():
        record = json.loads(line)
        records[record["arm"]][record["seed"]].append(record)
    return records


def format_table(records: Records) -> str:
    """Return a Markdown table of the arms that have finished."""
    lines = [
        "| arm | seeds | KL, GSM8K | KL, WikiText-2 | perplexity, GSM8K | WikiText-2 |",
        "| --- | --: | --: | --: | --: | --: |",
    ]
    for arm, seeds in records.items():
        last = [runs[-1] for runs in seeds.values() if runs[-1]["finished"]]
        if last:
            kls = [_spread([run[name]["kl_to_teacher"] for run in last]) for name in TITLES]
            ppls = [f"{statistics.mean(run[name]['perplexity'] for run in last):.2f}" for name in TITLES]
            lines.append(f"| {arm} | {len(last)} | {' | '.join([*kls, *ppls])} |")
    return "\n".join(lines)


def _spread(values: list[float]) -> str:
    """Return the mean, and half the distance between the extremes."""
    half = (max(values) - min(values)) / 2
    return f"{statistics.mean(values):.4f}" + (f" ± {half:.4f}" if len(values) > 1 else "")


def draw_curves(records: Records, picture: Path) -> None:
    """Draw KL over training tokens for the arms of CURVES, and the BASELINES as levels."""
    figure, axes = plt.subplots(1, 2, figsize=(9, 4.2), sharey=True)
    for axis, (name, title) in zip(axes, TITLES.items(), strict=True):
        for arm, (label, color, style) in CURVES.items():
            runs = records.get(arm, {}).get(0, [])
            axis.plot(
                [run["num_tokens"] / 1e6 for run in runs],
                [run[name]["kl_to_teacher"] for run in runs],
                color=color,
                linestyle=style,
                marker="o",
                markersize=3,
                label=label,
            )
        for arm, label in BASELINES.items():
            if arm not in records:
                continue
            kl = records[arm][0][-1][name]["kl_to_teacher"]
            axis.axhline(kl, color="gray", linewidth=0.8)
            axis.annotate(label, (0.02, kl), xycoords=("axes fraction", "data"), va="bottom", color="gray", fontsize=8)
        axis.set(title=title, xlabel="million training tokens", ylim=(0, 0.175))
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("KL to the teacher, nats a token")
    figure.tight_layout(rect=(0, 0.13, 1, 1))
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, fontsize=8, frameon=False, ncol=3, loc="lower center")
    figure.savefig(picture)


if __name__ == "__main__":
    study = read_records(Path(sys.argv[1]))
    print(format_table(study))
    draw_curves(study, Path(sys.argv[2]))
