"""`rayqd quantize`"""

from __future__ import annotations

from collections.abc import Sequence

from rayqd.cli.command import Command
from rayqd.config.load import load_config
from rayqd.console.quiet import quiet_driver


def _quantize(words: Sequence[str]) -> int:
    config = load_config(words)
    if "name" not in config.model_fields_set:
        config = config.model_copy(update={"name": "quantize"})
    quiet_driver()
    from rayqd.commands.quantize import quantize

    quantize(config)
    return 0


COMMAND = Command(
    name="quantize",
    text="make a 4-bit model without training: GPTQ, AWQ or rounding",
    run=_quantize,
    details="quant.method says how. No Ray and no engine; the settings of training do not matter.",
)
