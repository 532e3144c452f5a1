"""The model card of an export: what it is, how it was made, how it does, how to serve it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import cast

from rayqd.config import Config
from rayqd.config.recipe import command_line, given_settings
from rayqd.config.sections import METHODS
from rayqd.config.sections.markers import Housekeeping, HubIdOrPath, MachineSpecific, RunSpecific
from rayqd.config.sections.sources import SourceConfig
from rayqd.config.settings import settings_with, value_text
from rayqd.console.benchmark_table import (
    NOTES,
    chance,
    cut_answers,
    difference_text,
    drop_group_members,
    heading_of,
    score_text,
)
from rayqd.console.result_table import describe_bits, format_bits, format_size
from rayqd.events import ArmResult
from rayqd.files import write_text
from rayqd.model.source import EMBEDDED_HUB_ID, EMBEDDED_NAME
from rayqd.runs.benchmarks import BenchmarkRow
from rayqd.versions import installed_version

CARD_NAME = "README.md"

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")

_LIBRARY = {
    "compressed-tensors": "transformers",
    "bitsandbytes": "transformers",
    "gguf": "gguf",
    "gptq": "transformers",
    "awq": "transformers",
    "mlx": "mlx",
}
_SERVE = {
    "compressed-tensors": "vllm serve .              # in this directory\n"
    '# or: transformers.AutoModelForCausalLM.from_pretrained(".")',
    "bitsandbytes": "# with bitsandbytes installed\n"
    "python -c 'from transformers import AutoModelForCausalLM; AutoModelForCausalLM.from_pretrained(\".\")'",
    "gguf": "llama-server -m model-Q4_0.gguf",
    "gptq": "vllm serve .              # in this directory; transformers needs gptqmodel and optimum beside it",
    "awq": "vllm serve .              # in this directory; transformers needs gptqmodel beside it",
    "mlx": "mlx_lm.server --model .   # in this directory",
}
_NOTES = {
    "gguf": "llama.cpp multiplies codes and scales without the rounding to 16 bits that training had: its weights "
    "differ from the trained ones by at most one part in 256.",
    "mlx": "MLX multiplies codes and scales and adds the biases without the rounding to 16 bits that training had, or "
    "with roundings of its own where it unpacks a weight.",
    "bitsandbytes": "On CPUs with AVX512-BF16, bitsandbytes rounds the scales to bfloat16 before it computes.",
}


def make_model_card(
    config: Config,
    *,
    kind: str,
    rows: Sequence[ArmResult] = (),
    benchmarks: Sequence[BenchmarkRow] = (),
    command: str = "distill",
    ending: str = "",
) -> str:
    """Return Markdown with the hub's front matter; `rows` are result.json's, `benchmarks` those of `rayqd eval`.

    `ending` says of which step the weights are, where that is not the last one planned.
    """
    base = base_model_name(config.model.name)
    own = f"its own self in {config.model.dtype}"
    teacher = " and ".join(own if each.is_student else base_model_name(each.name) for each in config.teachers)
    how = (
        f"It was distilled from {teacher} with "
        f"quantization-aware training: what was trained is what these files hold, bit for bit."
        if command == "distill"
        else f"Its weights were quantized by {METHODS[config.quant.method]}, without training."
    )
    blocks = [
        _front_matter(config, kind, base, command),
        f"# {base.rpartition('/')[2]} in {config.quant.format.upper()}",
        f"A 4-bit version of {base}: {_grid(config)}. {how}{_dense_part(config, kind)}",
        f"## Recipe\n\nSettings that differ from rayqd's defaults:\n\n```toml\n{_recipe(config, command)}\n```",
        _data(config, command),
        ending,
        _results(rows),
        _benchmarks(benchmarks),
        f"## Reproduce\n\n```bash\n{command_line(_given(config, command).items(), command)}\n```",
        f"## Serve\n\n```bash\n{_serve(config, kind)}\n```",
        _NOTES.get(kind, ""),
        f"Made by rayqd {_version()}.",
    ]
    return "\n\n".join(block for block in blocks if block) + "\n"


def _serve(config: Config, kind: str) -> str:
    if kind == "gptq" and config.quant.rule == "asymmetric":
        return "# transformers with gptqmodel and optimum; vLLM does not load GPTQ with zero points"
    return _SERVE[kind]


def _dense_part(config: Config, kind: str) -> str:
    """Say what a float32 run leaves in float32, which makes its export larger than others."""
    if config.model.dtype != "float32" or kind == "gguf":
        return ""
    return " Embedding, norms and scales are float32, as it was trained: the files are larger than a 16-bit run's."


def write_card(directory: Path, text: str) -> None:
    """Put `text` in place of the card of an export; StorageError when that fails."""
    write_text(directory / CARD_NAME, text)


def base_model_name(name: str) -> str:
    """Return a hub id, or the last part of a directory's path: where somebody keeps models stays private."""
    return EMBEDDED_HUB_ID if name == EMBEDDED_NAME else _shorten_path(name)


def _front_matter(config: Config, kind: str, base: str, command: str) -> str:
    lines = [f"library_name: {_LIBRARY[kind]}", "pipeline_tag: text-generation"]
    if _is_hub_id(base):
        lines += [f"base_model: {base}", "base_model_relation: quantized"]
    sources = [each.source for each in config.data.each_source if _is_hub_id(_shorten_path(each.source))]
    if _data(config, command) and sources:
        lines += ["datasets:", *(f"- {source}" for source in dict.fromkeys(sources))]
    tags = ["rayqd", config.quant.format, kind, *(["distillation", "qat"] if command == "distill" else [])]
    return "\n".join(["---", *lines, "tags:", *(f"- {tag}" for tag in tags), "---"])


def _grid(config: Config) -> str:
    quant = config.quant
    rule = f", scales by rule {quant.rule}" if quant.format == "int4" else ""
    double = ", scales in 8 bits" if quant.double_quant else ""
    head = "" if quant.head == "none" else f", the output head and an embedding tied to it on a grid of {quant.head}"
    left_out = [entry for entry in quant.ignore if quant.head == "none" or entry != "lm_head"]
    dense = f"{', '.join(left_out) or 'nothing'} left out"
    return f"{quant.format} in groups of {quant.group_size}{rule}{double}, {dense}{head}"


def _data(config: Config, command: str) -> str:
    """Describe the data that it has seen; nothing where weights were only rounded."""
    sources = config.data.each_source
    source = ", ".join(_shorten_path(each.source) for each in sources)
    if command == "distill":
        return f"Data: {'; '.join(_describe_source(each, config) for each in sources)}."
    if config.quant.method == "rtn":
        return ""
    return f"Calibrated on the first rows of {source} that reach {config.quant.calibration_tokens:,} tokens."


def _describe_source(source: SourceConfig, config: Config) -> str:
    """Format `rows.jsonl, split train`, and of several its share of the sequences."""
    sources = config.data.each_source
    share = source.weight / sum(each.weight for each in sources)
    of_all = f", {share:.3g} of the sequences" if len(sources) > 1 else ""
    return f"{_shorten_path(source.source)}, split {source.split}{of_all}"


def _given(config: Config, command: str) -> dict[str, object]:
    """Return the recipe's settings, paths cut to their last part."""
    paths = settings_with(HubIdOrPath)
    given = given_settings(config, command, [RunSpecific, MachineSpecific, Housekeeping])
    return {key: _without_directories(value) if key in paths else value for key, value in given.items()}


def _without_directories(value: object) -> object:
    if isinstance(value, list):
        return [_without_directories(each) for each in cast("list[object]", value)]
    if isinstance(value, SourceConfig):
        return value.model_copy(update={"source": _shorten_path(value.source)})
    if isinstance(value, dict):
        return {key: _without_directories(each) for key, each in cast("dict[str, object]", value).items()}
    return _shorten_path(value) if isinstance(value, str) else value


def _recipe(config: Config, command: str) -> str:
    return "\n".join(f"{key} = {value_text(value)}" for key, value in _given(config, command).items()) or "# none"


def _results(rows: Sequence[ArmResult]) -> str:
    if not rows:
        return ""
    lines = [
        f"| {row.arm.name} | {row.fidelity.kl_to_teacher:.4f} | {row.fidelity.perplexity:.3f} | "
        f"{format_bits(row)} | {format_size(row)} |"
        for row in rows
    ]
    tokens = f"{rows[0].fidelity.num_tokens:,} held-out tokens; "
    head = ["| | KL to teacher | perplexity | bits/weight | size |", "| --- | ---: | ---: | ---: | ---: |"]
    bits = describe_bits(rows[-1])
    of_kinds = f" Bits a weight are over the whole model: {bits}." if bits else ""
    note = f"{tokens}KL(teacher‖student) in nats a token.{of_kinds}"
    return "\n".join(["## Results", "", note, "", *head, *lines])


def _benchmarks(rows: Sequence[BenchmarkRow]) -> str:
    if not rows:
        return ""
    shown = drop_group_members(rows)
    arms = list(shown[0]["arms"])
    head = [f"| | {' | '.join(arms)} | student against teacher | |", f"| --- |{' ---: |' * (len(arms) + 1)} --- |"]
    lines = [
        f"| {heading_of(row)} ({row['num_documents']:,} documents) | "
        f"{' | '.join(score_text(row['arms'][arm]) for arm in arms)} | "
        f"{difference_text(row['arms']['student'])} | {row['arms']['student'].get('verdict') or ''} |"
        for row in shown
    ]
    notes = [f"{note}." for note in (*NOTES, *chance(shown), *cut_answers(shown))]
    return "\n".join(["## Benchmarks", "", " ".join(["lm-evaluation-harness;", *notes]), "", *head, *lines])


def _shorten_path(name: str) -> str:
    path = Path(name).expanduser()
    return path.name if path.is_absolute() or path.exists() or name.startswith(".") else name


def _is_hub_id(name: str) -> bool:
    return _HUB_ID.fullmatch(name) is not None


def _version() -> str:
    return installed_version("rayqd") or "(not installed)"
