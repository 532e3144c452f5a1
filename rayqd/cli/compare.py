"""`rayqd compare`"""

from __future__ import annotations

from rayqd.cli.command import Command, Given
from rayqd.cli.operands import Operand
from rayqd.cli.options import Option
from rayqd.config import Config
from rayqd.config.comparison import comparison_help, comparison_of
from rayqd.console.quiet import quiet_driver
from rayqd.errors import ConfigError


def _compare(given: Given) -> int:
    if given.arguments.files:
        return _compare_arms(given)
    if given.arguments.flags:
        key = given.arguments.flags[0].key
        raise ConfigError(f"flag --{key}: runs that are there have their settings; settings go with @file.toml")
    if "dry-run" in given.options:
        raise ConfigError("--dry-run: goes with @file.toml; runs that are there are only read")
    if "price" in given.options:
        raise ConfigError("--price: goes with @file.toml, of whose arms the cost is known")
    from rayqd.commands.compare import compare

    compare(given.operands, Config().runs_dir, as_json="json" in given.options)
    return 0


def _compare_arms(given: Given) -> int:
    if "json" in given.options:
        raise ConfigError("--json: goes with runs; the comparison of a file leaves compare.json")
    price = _read_price(given.options.get("price"))
    spec = comparison_of(given.arguments)
    quiet_driver()
    if "dry-run" in given.options:
        from rayqd.commands.dry_run_compare import dry_run_compare

        return dry_run_compare(spec)
    from rayqd.commands.compare_arms import compare_arms

    findings = compare_arms(spec, price=price)
    return 1 if findings.failed or (findings.own_texts and findings.own_texts.errors) else 0


def _read_price(text: str | None) -> float | None:
    try:
        price = None if text is None else float(text)
    except ValueError:
        price = -1.0
    if price is not None and not 0 <= price < float("inf"):
        raise ConfigError(f"--price {text}: must be a number of at least 0, the price of an accelerator an hour")
    return price


_DETAILS = """\
With a file it trains what it compares: ordinary settings, a section [compare], and in [compare.arms] the arms, each of
a kind (teacher, rtn, gptq, awq, autoround, off-policy, mixed, on-policy, distill, model) with settings of its own:

    [compare]
    seeds = [0, 1]
    budget = "tokens"
    amount = 100_000
    [compare.arms]
    gptq = {}
    off-policy = {}
    on-policy = {}
    on-policy-slow = {kind = "on-policy", learner.lr = 1e-4}
    theirs = {kind = "model", path = "out/autoround-w4"}

Every arm and seed is an ordinary run in RUNS_DIR/NAME. The same command again runs what is missing, or has failed."""

COMMAND = Command(
    name="compare",
    text="which way is better, at one price: train the arms of a file over seeds; or put finished runs side by side",
    run=_compare,
    operands=(
        Operand(
            name="RUN",
            needs="two runs or more",
            example="runs/a runs/b",
            text="a run's directory, or its name in runs",
            least=2,
            most=None,
        ),
    ),
    file_replaces_operands=True,
    options=(
        Option(name="json", text="of runs: the same for programs"),
        Option(name="price", value="PRICE", text="of a file: the price of an accelerator an hour, for what arms cost"),
        Option(
            name="dry-run",
            text="of a file: check every arm as far as that goes before anything starts, tell which runs are there, "
            "which would be run for how many steps, and what they would ask of which nodes, and write nothing",
        ),
    ),
    details=f"{_DETAILS}\n\n{comparison_help()}",
    when_stopped="the same command goes on with the runs that have not ended",
    first_settings=(
        "name",
        "model.name",
        "data.source",
        "eval.source",
        "eval.num_rows",
        "quant.format",
        "quant.group_size",
        "distill.beta",
        "learner.steps",
        "learner.lr",
    ),
)
