"""The command line: `rayqd COMMAND [@file.toml ...] [--section.field VALUE ...]`.

What a command needs is imported when it runs, so that help and a mistyped setting answer at once.
"""

from __future__ import annotations

import difflib
import os
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from rayqd.config.arguments import Arguments, read_arguments
from rayqd.config.files import missing
from rayqd.config.help import settings_help
from rayqd.config.load import config_of, load_config, unexpected
from rayqd.config.resolved import to_toml
from rayqd.config.switches import take_switches
from rayqd.errors import ConfigError, RayqdError
from rayqd.observe.quiet import quiet_driver


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    name: str
    text: str  # one line
    run: Callable[[Sequence[str]], int]  # takes the words after the command, returns the exit code
    operand: str = ""  # what stands before the settings
    details: str = ""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code. Every expected failure is one line on stderr."""
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        code = _dispatch(words)
        sys.stdout.flush()
    except RayqdError as error:
        print(f"rayqd: error: {' '.join(str(error).split())}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("rayqd: stopped", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader of a pipe went away (`rayqd config | head`); Python would complain once more at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    return code


def _dispatch(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help"):
        print(_help())
        return 0
    if words[0] == "--version":
        print(f"rayqd {_version()}")
        return 0
    command = _command(words[0])
    if {"-h", "--help"} & set(words[1:]):
        print(_command_help(command))
        return 0
    return command.run(words[1:])


def _command(name: str) -> Command:
    if name in COMMANDS:
        return COMMANDS[name]
    if name.startswith(("@", "-")):
        raise ConfigError(f'"{name}" stands where the command belongs: rayqd distill {name}')
    near = difflib.get_close_matches(name, COMMANDS, n=1)
    hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(COMMANDS)}"
    raise ConfigError(f'unknown command "{name}"; {hint}')


def _distill(words: Sequence[str]) -> int:
    config = load_config(words)
    quiet_driver()
    from rayqd.run import distill

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # what stops a job is an orderly end, as Ctrl-C is
    try:
        distill(config)
    except KeyboardInterrupt:
        print("rayqd: stopped; the same command goes on from the last checkpoint", file=sys.stderr)
        return 130
    return 0


def _quantize(words: Sequence[str]) -> int:
    config = load_config(words)
    if "name" not in config.model_fields_set:
        config = config.model_copy(update={"name": "quantize"})
    quiet_driver()
    from rayqd.quantize import quantize

    quantize(config)
    return 0


def _evaluate(words: Sequence[str]) -> int:
    arguments = read_arguments(words)
    path = _operand(arguments, "eval", "a run's directory or one of its checkpoints")
    config = config_of(arguments, before=_settings_of_run(path))
    quiet_driver()
    from rayqd.evaluation import evaluate

    evaluate(path, config)
    return 0


def _export(words: Sequence[str]) -> int:
    switches, others = take_switches(words, {"out": "DIR", "as": "KIND", "verify": "", "overwrite": ""})
    arguments = read_arguments(others)
    run_dir = _operand(arguments, "export", "a run's directory")
    config = config_of(arguments, before=_settings_of_run(run_dir))
    quiet_driver()
    from rayqd.exporting import export_run

    return export_run(
        run_dir,
        config,
        out=Path(switches["out"]) if "out" in switches else None,
        kind_name=switches.get("as"),
        verify="verify" in switches,
        overwrite="overwrite" in switches,
    )


def _bench(words: Sequence[str]) -> int:
    switches, others = take_switches(words, BENCH_SWITCHES)
    arguments = read_arguments(others)
    kind, *rest = [*arguments.words, ""]
    if kind not in BENCH_KINDS or any(rest):
        shown = f', got "{" ".join(arguments.words)}"' if arguments.words else ""
        raise ConfigError(f"rayqd bench needs one of {', '.join(BENCH_KINDS)}{shown}: rayqd bench step")
    config = config_of(arguments)
    quiet_driver()
    from rayqd.bench.command import bench

    bench(kind, config, switches)
    return 0


def _config(words: Sequence[str]) -> int:
    print(to_toml(load_config(words)), end="")
    return 0


def _doctor(words: Sequence[str]) -> int:
    config = load_config(words)
    from rayqd.doctor import examine

    return examine(config)


def _operand(arguments: Arguments, command: str, what: str) -> Path:
    first, *others = [*arguments.words, "", ""]
    if not first:
        raise ConfigError(f"rayqd {command} needs {what}: rayqd {command} runs/quickstart")
    if others[0]:
        raise ConfigError(unexpected(others[0]))
    path = Path(first)
    if not path.exists():
        raise ConfigError(missing(path))
    return path


def _settings_of_run(path: Path) -> list[Path]:
    """The config.toml of the run that `path` is, or is a part of."""
    folders = [path, *path.absolute().parents[:2]]
    return [folder / "config.toml" for folder in folders if (folder / "config.toml").is_file()][:1]


def _version() -> str:
    try:
        return version("rayqd")
    except PackageNotFoundError:
        return "(not installed: run `make setup`, or `pip install -e .`)"


def _help() -> str:
    lines = [f"  {command.name:10}{command.text}" for command in COMMANDS.values()]
    return "\n".join([HEADER, "Commands:", *lines, "", EXAMPLES])


def _command_help(command: Command) -> str:
    usage = f"rayqd {command.name} {command.operand}".rstrip()
    about = f"{command.text}\n{command.details}".rstrip()
    return f"usage: {usage} [@file.toml ...] [--section.field VALUE ...]\n\n{about}\n\n{SYNTAX}\n{settings_help()}"


HEADER = """\
usage: rayqd COMMAND [@file.toml ...] [--section.field VALUE ...]

Distils a language model into its own INT4 self.
"""

EXAMPLES = """\
Examples:
  rayqd doctor                                    what this machine can run
  rayqd distill @configs/quickstart.toml          a real run, small enough for two CPU cores
  rayqd distill @a.toml @b.toml --learner.lr 1e-4 b.toml wins over a.toml, the flag over both
  rayqd quantize @a.toml --quant.method awq       a 4-bit model without training, in one process
  rayqd config @a.toml --quant.group-size 64      the settings that this comes to, as TOML
  rayqd eval runs/quickstart                      how far the run's student is from its teacher
  rayqd export runs/quickstart --verify           whether its export is, bit for bit, what was trained

`rayqd COMMAND --help` lists every setting."""

SYNTAX = """\
Settings come from TOML files and from flags; later files win over earlier ones, flags over files.
--section.field VALUE and --section.field=VALUE are alike, and so are group-size and group_size.
Lists: A,B or '["A", "B"]'. Settings that may be unset take "none". A switch alone turns on, --no- turns off."""

EXPORT_DETAILS = """\
--as KIND     compressed-tensors (int4, nvfp4), bitsandbytes (nf4, fp4), or gguf (int4 in groups of 32: Q4_0);
              without it, what the run's format is usually written as
--out DIR     without it, RUN_DIR/export, or RUN_DIR/export-KIND for another kind than the usual
--verify      load the export afresh and compare every tensor with the checkpoint, its predictions, and vLLM's;
              the result goes to verify.json beside it, and the exit code is 1 if something differs.
              An export that is there already is verified as it is.
--overwrite   replace what is there"""

BENCH_KINDS = ("step", "loss")
BENCH_SWITCHES = {"shape": "NAME", "tokens": "SEQUENCESxLENGTH", "repeats": "N", "json": "FILE"}
BENCH_DETAILS = """\
step   an optimizer step with adapters inside the rounding, beside plain LoRA without any
loss   the exact divergence with its gradient, beside the three matrix products that it needs
--shape NAME                smollm2-135m, qwen3-0.6b, qwen3-4b or qwen3-8b, with random weights
--tokens SEQUENCESxLENGTH   a step's tokens; 8x1024 on a GPU, 2x256 without
--repeats N                 measured runs, of which the median counts; 5
--json FILE                 the numbers once more, for programs"""

COMMANDS = {
    command.name: command
    for command in (
        Command(
            name="distill",
            text="train a 4-bit student to behave like its teacher",
            run=_distill,
            details="The same command again resumes where its run directory ends.",
        ),
        Command(
            name="quantize",
            text="make a 4-bit model without training: GPTQ, AWQ or rounding",
            run=_quantize,
            details="quant.method says how. No Ray and no engine; the settings of training do not matter.",
        ),
        Command(
            name="eval",
            text="measure a run or a checkpoint against its teacher",
            run=_evaluate,
            operand="RUN_OR_CHECKPOINT_DIR",
            details="Settings start from the run's own config.toml.",
        ),
        Command(
            name="export",
            text="write a run's newest checkpoint for vLLM, transformers or llama.cpp, and verify it",
            run=_export,
            operand="RUN_DIR [--out DIR] [--as KIND] [--verify] [--overwrite]",
            details=EXPORT_DETAILS,
        ),
        Command(
            name="bench",
            text="measure the speed of a part on this machine",
            run=_bench,
            operand="step|loss [--shape NAME] [--tokens SEQUENCESxLENGTH] [--repeats N] [--json FILE]",
            details=BENCH_DETAILS,
        ),
        Command(name="config", text="print the settings as they resolve, as TOML", run=_config),
        Command(
            name="doctor",
            text="check this machine: what it can run, and how to mend what it cannot",
            run=_doctor,
            details="Of the settings it looks at runs_dir alone. The exit code is 1 if something fails.",
        ),
    )
}
