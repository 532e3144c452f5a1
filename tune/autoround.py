"""A baseline of the recipe study: AutoRound (Cheng et al. 2023), from its own package.

    python tune/autoround.py tune/recipes.toml DATA_DIR OUT_DIR [--iterations 1000]

needs `auto-round` (0.16), in an environment of its own or beside rayqd's packages. Symmetric INT4, the study's groups,
output head and embeddings as they are; 200 iterations are the tool's default, 1000 its "best".

AutoRound takes rows of one length: the study's calibration rows are laid end to end and cut.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from elsewhere import Job, errors_in_a_line, import_tool, parser, positive, read_job

from rayqd.errors import ConfigError
from rayqd.model.load import load_tokenizer
from rayqd.types import IntArray


def equal_rows(rows: Sequence[IntArray], length: int, num_tokens: int) -> IntArray:
    """Lay rows end to end and cut the first `num_tokens` of them; [num_tokens // length, length].

    Raises ConfigError if they do not fill one row.
    """
    tokens = np.concatenate(rows)[:num_tokens]
    if len(tokens) < length:
        raise ConfigError(f"{len(tokens)} calibration tokens do not fill a row of --length {length}; make it shorter")
    return tokens[: len(tokens) // length * length].reshape(-1, length)


def unused_token(rows: IntArray, num_tokens: int) -> int:
    """Return the first id of a vocabulary that no row has: AutoRound leaves out what equals the padding token.

    Raises ConfigError if the rows have all of them.
    """
    unused = np.setdiff1d(np.arange(num_tokens), rows)
    if not len(unused):
        raise ConfigError(f"the rows have all {num_tokens} tokens, and AutoRound leaves one out; calibrate on fewer")
    return int(unused[0])


def quantize(auto_round: Any, job: Job, iterations: int, length: int) -> None:
    """Quantize with AutoRound, and write the weights that its model computes with."""
    model, tokenizer = job.load(), load_tokenizer(job.directory)
    rows = equal_rows(job.rows, length, job.config.quant.calibration_tokens)
    tokenizer.pad_token = tokenizer.convert_ids_to_tokens(unused_token(rows, len(tokenizer)))
    tool = auto_round.AutoRound(
        model,
        tokenizer,
        scheme="W4A16",
        group_size=job.config.quant.group_size,
        sym=True,
        iters=iterations,
        dataset=[torch.from_numpy(row.astype(np.int64))[None] for row in rows],
        seqlen=length,
        nsamples=len(rows),
        low_cpu_mem_usage=False,
        enable_torch_compile=False,
        device_map="cuda:0" if torch.cuda.is_available() else "cpu",
    )
    quantized, layers = tool.quantize()
    weights = {f"{name}.weight": quantized.get_submodule(name).weight for name in layers if ".layers." in name}
    settings = {"iterations": iterations, "symmetric": True, "num_rows": len(rows), "num_tokens": rows.size}
    job.save(weights, settings, "auto-round")


def main() -> None:
    """Read the command line, and quantize."""
    made = parser(__doc__ or "")
    made.add_argument("--iterations", type=positive, default=200, help="steps a decoder layer")
    made.add_argument("--length", type=positive, default=512, help="tokens a calibration row")
    options = made.parse_args()
    auto_round = import_tool("auto_round", "auto-round")
    quantize(auto_round, read_job(options), options.iterations, options.length)


if __name__ == "__main__":
    with errors_in_a_line():
        main()
