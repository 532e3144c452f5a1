"""`rayqd bench`"""

from __future__ import annotations

from collections.abc import Sequence

from rayqd.cli.command import Command
from rayqd.config.arguments import read_arguments
from rayqd.config.load import config_of
from rayqd.config.switches import take_switches
from rayqd.console.quiet import quiet_driver
from rayqd.errors import ConfigError

BENCH_KINDS = ("step", "loss", "teacher")
BENCH_SWITCHES = {
    "shape": "NAME",
    "tokens": "SEQUENCESxLENGTH",
    "chunk-tokens": "N",
    "repeats": "N",
    "arms": "LIST",
    "json": "FILE",
}
BENCH_DETAILS = """\
step   an optimizer step with adapters inside the rounding, beside plain LoRA without any, and the rounding alone
loss   the exact divergence with its gradient, beside the three matrix products that it needs, beside what it does
       between them, and beside TRL's and Liger's where they are installed
teacher  each teacher.payload on held-out rows of data.source: bytes a token, tokens a second, and how far its loss
       and gradient are from the exact ones, for the model rounded to nearest
--shape NAME                step and loss: smollm2-135m, qwen3-0.6b, qwen3-4b or qwen3-8b, with random weights
--tokens SEQUENCESxLENGTH   a step's tokens; 8x1024 on a GPU, 2x256 without
--chunk-tokens N            loss: tokens whose logits are held at a time; unless given as many as 1 GiB of a GPU holds
--repeats N                 measured runs, of which the median counts; 5
--arms LIST                 step: what to measure, of plain, stop and pass (adapter.saturated), full (QAT of all
                            weights, whose optimizer needs the memory) and rounding; plain,stop,pass,rounding
--json FILE                 the numbers once more, for programs"""


def _bench(words: Sequence[str]) -> int:
    switches, others = take_switches(words, BENCH_SWITCHES)
    arguments = read_arguments(others)
    kind, *rest = [*arguments.words, ""]
    if kind not in BENCH_KINDS or any(rest):
        shown = f', got "{" ".join(arguments.words)}"' if arguments.words else ""
        raise ConfigError(f"rayqd bench needs one of {', '.join(BENCH_KINDS)}{shown}: rayqd bench step")
    config = config_of(arguments)
    quiet_driver()
    from rayqd.commands.bench import bench

    bench(kind, config, switches)
    return 0


COMMAND = Command(
    name="bench",
    text="measure the speed of a part on this machine",
    run=_bench,
    operand="step|loss|teacher [--shape NAME] [--tokens SEQUENCESxLENGTH] [--chunk-tokens N] [--repeats N] "
    "[--arms LIST] [--json FILE]",
    details=BENCH_DETAILS,
)
