"""Measure what other tools quantized, as the recipe study measures its own arms.

    python tune/measure_elsewhere.py ARMS.toml DATA_DIR RESULTS.jsonl NAME=DIR...

appends a line to RESULTS.jsonl for each directory (as tune/autoround.py and tune/llmcompressor_gptq.py write them),
which tune/recipes_report.py reads like the study's. Runs in rayqd's environment.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from elsewhere import SUMMARY, errors_in_a_line
from recipes import HELDOUT, Study, read_runs

from rayqd.errors import ConfigError
from rayqd.model.load import load_model


def read_arm(text: str) -> tuple[str, Path]:
    """Read NAME=DIR.

    Raises ConfigError if it is not that, or DIR is no model of one of the scripts.
    """
    name, _, directory = text.partition("=")
    if not name or not directory:
        raise ConfigError(f"{text}: write NAME=DIR, such as autoround=runs/autoround")
    if not (Path(directory) / SUMMARY).is_file():
        raise ConfigError(f"{directory} lacks {SUMMARY}, which tune/autoround.py and tune/llmcompressor_gptq.py write")
    return name, Path(directory)


def main() -> None:
    """Read the command line, and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("arms", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("results", type=Path)
    parser.add_argument("models", nargs="+", metavar="NAME=DIR")
    options = parser.parse_args()

    models = [read_arm(text) for text in options.models]
    config = read_runs(options.arms)[0].config
    study = Study(config, options.data)
    for name, directory in models:
        fidelity = study.measure_model(load_model(directory, config.model.dtype))
        line = {"arm": name, "seed": 0, "finished": True, "step": 0, **fidelity}
        line["elsewhere"] = json.loads((directory / SUMMARY).read_text())
        with options.results.open("a") as file:
            file.write(json.dumps(line) + "\n")
        kl = "  ".join(f"{heldout} {fidelity[heldout]['kl_to_teacher']:.4f}" for heldout in HELDOUT)
        print(f"{name}: {kl}", flush=True)


if __name__ == "__main__":
    with errors_in_a_line():
        main()
