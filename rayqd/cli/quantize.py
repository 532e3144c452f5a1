"""`rayqd quantize`"""

from __future__ import annotations

from rayqd.cli.command import Command, Given
from rayqd.cli.options import Option
from rayqd.config.load import config_of
from rayqd.console.quiet import quiet_driver
from rayqd.model.import_transformers import import_transformers
from rayqd.spans import process_start, span


def _quantize(given: Given) -> int:
    config = config_of(given.arguments)
    if "name" not in config.model_fields_set:
        config = config.model_copy(update={"name": "quantize"})
    quiet_driver()
    if "dry-run" in given.options:
        from rayqd.commands.dry_run import dry_run_quantize

        return dry_run_quantize(config)
    began = process_start()
    with span("import transformers"):
        import_transformers()
        from rayqd.commands.quantize import quantize

    quantize(config, began=began)
    return 0


COMMAND = Command(
    name="quantize",
    text="make a 4-bit model without training: GPTQ, AWQ, AutoRound or rounding",
    run=_quantize,
    options=(
        Option(
            name="dry-run",
            text="check all that can be checked before the model is loaded, tell what it would be calibrated on and "
            "where the result would lie, and write nothing",
        ),
    ),
    details="quant.method says how. No Ray and no engine; the settings of training do not matter.",
    first_settings=(
        "name",
        "model.name",
        "data.source",
        "quant.format",
        "quant.group_size",
        "quant.rule",
        "quant.method",
        "quant.calibration_tokens",
        "quant.ignore",
        "eval.num_rows",
    ),
)
