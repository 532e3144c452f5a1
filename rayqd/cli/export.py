"""`rayqd export`"""

from __future__ import annotations

from rayqd.cli.command import Command, Given
from rayqd.cli.operands import Operand, existing_run, settings_of_run
from rayqd.cli.options import Option
from rayqd.config.load import config_of
from rayqd.console.quiet import quiet_driver
from rayqd.runs.paths import CHECKPOINTS, EXPORT, START


def _export(given: Given) -> int:
    run_dir = existing_run(given.operands[0], parts=(START, CHECKPOINTS, EXPORT))
    config = config_of(given.arguments, before=settings_of_run(run_dir))
    quiet_driver()
    from rayqd.commands.export import export_run

    return export_run(
        run_dir,
        config,
        out=given.path("out"),
        kind_name=given.options.get("as"),
        verify="verify" in given.options,
        overwrite="overwrite" in given.options,
        push_to=given.options.get("push"),
        is_public="public" in given.options,
    )


COMMAND = Command(
    name="export",
    text="write a run's newest checkpoint for vLLM, transformers, llama.cpp or MLX, and verify it",
    run=_export,
    operands=(Operand(name="RUN_DIR", needs="a run's directory", example="runs/quickstart"),),
    options=(
        Option(
            name="out",
            value="DIR",
            text="without it, RUN_DIR/export, or RUN_DIR/export-KIND for another kind than the usual",
        ),
        Option(
            name="as",
            value="KIND",
            text="compressed-tensors (int4, nvfp4), bitsandbytes (nf4, fp4), gguf (int4 in groups of 32: Q4_0), gptq "
            "or awq (int4 in groups of 32, 64 or 128, for older servers), or mlx (the same without zero points); "
            "without it, what the run's format is usually written as",
        ),
        Option(
            name="verify",
            text="load the export afresh and compare every tensor with the checkpoint, its predictions, and vLLM's; "
            "the result goes to verify.json beside it, and the exit code is 1 if something differs. An export that is "
            "there already is verified as it is.",
        ),
        Option(name="overwrite", text="replace what is there"),
        Option(
            name="push",
            value="HUB-ID",
            text="then upload it, with its card, to OWNER/NAME on the model hub that huggingface_hub is logged in to: "
            "into a private repository, unless it is there already. An export that is there is uploaded as it is.",
        ),
        Option(name="public", text="with --push: everybody may see a repository that is made"),
    ),
    details="RUN_DIR may be a run in its storage, s3://bucket/folder/name, of which a copy is kept in the cache; "
    "then give --out.",
)
