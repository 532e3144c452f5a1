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
    "run": "whole training steps, beside TRL's GKDTrainer and DistillationTrainer and vLLM alone, where they are "
    "installed, on the same model and requests: seconds a step, tokens a second, the first step, memory",
}
_OF_RUNS = {"peers", "peers-alone", "sequences", "steps", "seconds", "limit", "beside", "logs"}


def _bench(given: Given) -> int:
    if given.operands[0] == "startup":
        return _bench_startup(given)
    if given.operands[0] == "data":
        return _bench_data(given)
    if given.operands[0] == "run":
        return _bench_run(given)
    if unused := sorted(given.options.keys() & _OF_RUNS):
        raise ConfigError(f"flag --{unused[0]}: only rayqd bench run reads it, not rayqd bench {given.operands[0]}")
    if "rows" in given.options:
        raise ConfigError(f"flag --rows: only rayqd bench data makes rows, not rayqd bench {given.operands[0]}")
    config = config_of(given.arguments)
    quiet_driver()
    from rayqd.commands.bench import bench

    bench(given.operands[0], config, given.options)
    return 0


def _bench_run(given: Given) -> int:
    if unused := sorted(given.options.keys() - _OF_RUNS - {"json", "arms", "shape"}):
        raise ConfigError(f"flag --{unused[0]}: rayqd bench run does not read it; --sequences and --steps say how much")
    quiet_driver()
    from rayqd.bench.head_to_head.plan import plan_run
    from rayqd.commands.bench_run import run_head_to_head

    run_head_to_head(plan_run(given.arguments, given.options))
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
    when_stopped="what rayqd bench run has measured is in the file of --json, and --beside FILE goes on from there",
    operands=(Operand(name="|".join(_KINDS), needs=f"one of {', '.join(_KINDS)}", example="step", choices=_KINDS),),
    options=(
        Option(
            name="shape",
            value="NAME",
            text="step, loss and run: smollm2-135m, qwen3-0.6b, qwen3-4b or qwen3-8b, with random weights; run: unless "
            "given qwen3-4b on a GPU, and the real model of model.name without",
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
            "optimizer needs the memory) and rounding; plain,stop,pass,rounding. run: on-policy,off-policy",
        ),
        Option(
            name="peers",
            value="LIST",
            text="run: whom to measure beside rayqd, of trl-gkd, trl-distillation, vllm and vllm-int4 (what rayqd's "
            "run has exported), or none; all of them",
        ),
        Option(
            name="sequences",
            value="SEQUENCESxNEW_TOKENS",
            text="run: a step's sequences and the tokens of each completion; 64x512 on a GPU, 8x128 without",
        ),
        Option(name="steps", value="N", text="run: optimizer steps, of which the first does not count; 6 on a GPU, 4"),
        Option(
            name="seconds", value="N", text="run: no further step of a peer once it took so long after its first; 90"
        ),
        Option(name="limit", value="N", text="run: seconds after which the process of a contender is ended; 1800"),
        Option(
            name="beside",
            value="FILE,...",
            text="run: the JSON of earlier calls, whose rows are shown and not measured once more",
        ),
        Option(name="peers-alone", text="run: leave rayqd itself out"),
        Option(name="logs", value="DIR", text="run: for all that each contender prints; beside the JSON, FILE.logs"),
        Option(name="rows", value="N", text="data: how many rows to make up; 1,000,000"),
        Option(name="json", value="FILE", text="the numbers once more, for programs"),
    ),
)
