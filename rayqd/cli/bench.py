"""`rayqd bench`"""

from __future__ import annotations

from rayqd.cli.command import Command, Given
from rayqd.cli.operands import Operand
from rayqd.cli.options import Option
from rayqd.config.load import config_of
from rayqd.console.quiet import quiet_driver
from rayqd.errors import ConfigError

_KINDS = {
    "step": "an optimizer step with adapters inside the rounding, beside plain LoRA without any, and the rounding "
    "alone",
    "loss": "the exact divergence with its gradient, beside the three matrix products that it needs, beside what it "
    "does between them, and beside TRL's and Liger's where they are installed",
    "teacher": "each teacher.payload on held-out rows of data.source: bytes a token, tokens a second, and how far its "
    "loss and gradient are from the exact ones, for the model rounded to nearest",
    "startup": "a whole run, with empty caches and once more: how soon its first step is done, how soon all is over "
    "after the last, and what took how long; without a file of settings 8 steps of a small model",
    "data": "rows read, rendered, tokenized and planned, with nothing kept of them and once more: seconds and memory; "
    "rows that are made up, or those of data.source where the settings name one",
}


def _bench(given: Given) -> int:
    if given.operands[0] == "startup":
        return _bench_startup(given)
    if given.operands[0] == "data":
        return _bench_data(given)
    if "rows" in given.options:
        raise ConfigError(f"flag --rows: only rayqd bench data makes rows, not rayqd bench {given.operands[0]}")
    config = config_of(given.arguments)
    quiet_driver()
    from rayqd.commands.bench import bench

    bench(given.operands[0], config, given.options)
    return 0


def _bench_startup(given: Given) -> int:
    if unused := sorted(given.options.keys() - {"json"}):
        raise ConfigError(f"flag --{unused[0]}: rayqd bench startup does not read it; the settings say what is run")
    from rayqd.commands.bench_startup import startup, startup_config

    startup(startup_config(given.arguments), given.path("json"))
    return 0


def _bench_data(given: Given) -> int:
    if unused := sorted(given.options.keys() - {"json", "rows"}):
        raise ConfigError(f"flag --{unused[0]}: rayqd bench data does not read it; --rows says how many are made up")
    from rayqd.commands.bench_data import benchmark_data, data_config, rows_to_make

    num_rows = rows_to_make(given.arguments, given.options.get("rows"))
    config = data_config(given.arguments)
    quiet_driver()
    benchmark_data(config, num_rows, given.path("json"))
    return 0


COMMAND = Command(
    name="bench",
    text="measure the speed of a part on this machine",
    run=_bench,
    operands=(Operand(name="|".join(_KINDS), needs=f"one of {', '.join(_KINDS)}", example="step", choices=_KINDS),),
    options=(
        Option(
            name="shape",
            value="NAME",
            text="step and loss: smollm2-135m, qwen3-0.6b, qwen3-4b or qwen3-8b, with random weights",
        ),
        Option(
            name="tokens",
            value="SEQUENCESxLENGTH",
            text="a step's tokens; 8x1024 on a GPU, 2x256 without",
        ),
        Option(
            name="chunk-tokens",
            value="N",
            text="loss: tokens whose logits are held at a time; unless given as many as 1 GiB of a GPU holds",
        ),
        Option(name="repeats", value="N", text="measured runs, of which the median counts; 5"),
        Option(
            name="arms",
            value="LIST",
            text="step: what to measure, of plain, stop and pass (adapter.saturated), full (QAT of all weights, whose "
            "optimizer needs the memory) and rounding; plain,stop,pass,rounding",
        ),
        Option(name="rows", value="N", text="data: how many rows to make up; 1,000,000"),
        Option(name="json", value="FILE", text="the numbers once more, for programs"),
    ),
)
