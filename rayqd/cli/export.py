"""`rayqd export`"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rayqd.cli.command import Command, operand, settings_of_run
from rayqd.config.arguments import read_arguments
from rayqd.config.load import config_of
from rayqd.config.switches import take_switches
from rayqd.console.quiet import quiet_driver

EXPORT_DETAILS = """\
--as KIND     compressed-tensors (int4, nvfp4), bitsandbytes (nf4, fp4), or gguf (int4 in groups of 32: Q4_0);
              without it, what the run's format is usually written as
--out DIR     without it, RUN_DIR/export, or RUN_DIR/export-KIND for another kind than the usual
--verify      load the export afresh and compare every tensor with the checkpoint, its predictions, and vLLM's;
              the result goes to verify.json beside it, and the exit code is 1 if something differs.
              An export that is there already is verified as it is.
--overwrite   replace what is there
RUN_DIR may be a run in its storage, s3://bucket/folder/name, of which a copy is kept in the cache; then give --out."""


def _export(words: Sequence[str]) -> int:
    switches, others = take_switches(words, {"out": "DIR", "as": "KIND", "verify": "", "overwrite": ""})
    arguments = read_arguments(others)
    run_dir = operand(arguments, "export", "a run's directory", parts=("start", "checkpoints", "export"))
    config = config_of(arguments, before=settings_of_run(run_dir))
    quiet_driver()
    from rayqd.commands.export import export_run

    return export_run(
        run_dir,
        config,
        out=Path(switches["out"]) if "out" in switches else None,
        kind_name=switches.get("as"),
        verify="verify" in switches,
        overwrite="overwrite" in switches,
    )


COMMAND = Command(
    name="export",
    text="write a run's newest checkpoint for vLLM, transformers or llama.cpp, and verify it",
    run=_export,
    operand="RUN_DIR [--out DIR] [--as KIND] [--verify] [--overwrite]",
    details=EXPORT_DETAILS,
)
