"""A baseline of the recipe study: GPTQ of llm-compressor, with or without an importance matrix, from its own package.

    python tune/llmcompressor_gptq.py tune/recipes.toml DATA_DIR OUT_DIR [--observer imatrix_mse]

needs `llmcompressor` (0.14) with the `compressed-tensors` it pins, in an environment of their own: rayqd's exports
pin another. Symmetric INT4, the study's groups and calibration rows, output head and embeddings as they are.

The observer chooses each group's scale: `memoryless_minmax` (the tool's default) from the largest weight,
`memoryless_mse` by a search for the least error of weights, `imatrix_mse` by one that counts each column with the mean
square of its inputs. GPTQ chooses the codes in all three.
"""

from __future__ import annotations

from typing import Any

import torch
from elsewhere import Job, errors_in_a_line, import_tool, parser, read_job
from torch import Tensor
from torch.utils.data import DataLoader

from rayqd.types import IntArray

OBSERVERS = ("memoryless_minmax", "memoryless_mse", "imatrix_mse")


def collate(rows: list[IntArray]) -> dict[str, Tensor]:
    """Return a batch of one row, without padding; both [1, T]."""
    (row,) = rows
    ids = torch.tensor(row, dtype=torch.int64)[None]
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def quantize(llmcompressor: Any, job: Job, observer: str) -> None:
    """Quantize with llm-compressor's GPTQ, and write the weights that its model computes with."""
    from compressed_tensors.quantization import fake_quantize

    grid = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "observer": observer}
    grid["group_size"] = job.config.quant.group_size
    groups = {"group_0": {"targets": ["Linear"], "weights": grid}}
    model = llmcompressor.oneshot(
        model=job.load(),
        recipe=llmcompressor.modifiers.gptq.GPTQModifier(config_groups=groups, ignore=["lm_head"]),
        dataset=DataLoader(job.rows, collate_fn=collate),  # pyright: ignore[reportArgumentType]  # a list will do
        num_calibration_samples=len(job.rows),
    )
    weights: dict[str, Tensor] = {}
    for name, layer in model.named_modules():
        if (scheme := getattr(layer, "quantization_scheme", None)) is not None:
            values = fake_quantize(layer.weight, layer.weight_scale, layer.weight_zero_point, scheme.weights)
            weights[f"{name}.weight"] = values.detach().cpu()
    counts = {"num_rows": len(job.rows), "num_tokens": sum(map(len, job.rows))}
    job.save(weights, {"observer": observer, "symmetric": True, **counts}, "llmcompressor")


def main() -> None:
    """Read the command line, and quantize."""
    made = parser(__doc__ or "")
    made.add_argument("--observer", choices=OBSERVERS, default=OBSERVERS[0])
    options = made.parse_args()
    llmcompressor = import_tool("llmcompressor", "llmcompressor")
    import_tool("llmcompressor.modifiers.gptq", "llmcompressor")
    quantize(llmcompressor, read_job(options), options.observer)


if __name__ == "__main__":
    with errors_in_a_line():
        main()
