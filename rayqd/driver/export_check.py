"""Whether transformers reads the export of a model back, tried on a tiny copy before anything is loaded.

Readers unpack layers by rules of their own: some classes are exchanged while a quantized file is loaded (Llama 4's
experts), some look at weights that are still packed (xLSTM). What they then compute is held against what was exported.
"""

# pyright: reportUnknownMemberType=false
# torch's and transformers' signatures are partly without types.

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from rayqd.config import Config
from rayqd.config.sections import QuantConfig
from rayqd.console.quiet import quiet_libraries
from rayqd.errors import ModelError
from rayqd.export.write import export
from rayqd.model.forward.head_form import TOLERANCE, distance
from rayqd.model.forward.probe import make_random, random_rows
from rayqd.model.fused_experts import find_fused_experts
from rayqd.model.import_transformers import import_compressed_tensors
from rayqd.model.model_class import auto_class
from rayqd.model.student import Student
from rayqd.model.tiny import values_of

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

_GROUP_SIZES = (32, 16, 8)


def check_export(config: PreTrainedConfig, quant: QuantConfig) -> None:
    """Raise ModelError where an INT4 export of a tiny copy does not load in transformers, or computes otherwise."""
    if quant.format != "int4":
        return
    values = json.dumps(values_of(config), default=str, sort_keys=True)
    name = type(config).__name__.removesuffix("Config")
    if reason := _explain(type(config), values, quant.rule, tuple(quant.ignore), "none"):
        raise ModelError(f"{name} models cannot be exported in 4 bits: {reason}")
    if quant.head != "none" and (reason := _explain(type(config), values, quant.rule, tuple(quant.ignore), quant.head)):
        raise ModelError(f"{name} models cannot be exported with quant.head={quant.head}: {reason}; leave it out")


@lru_cache(maxsize=16)
def _explain(config_type: type[PreTrainedConfig], values: str, rule: str, ignore: tuple[str, ...], head: str) -> str:
    """Return what transformers says or computes of the export of a small copy; empty where all is right."""
    with quiet_libraries(), torch.random.fork_rng(devices=[]), TemporaryDirectory(prefix="rayqd-export-") as scratch:
        source, directory = Path(scratch, "source"), Path(scratch, "export")
        write_tiny_checkpoint(make_random(config_type.from_dict(json.loads(values))), source)
        model = _load(source)
        row = random_rows(model)[0][None]
        settings = tiny_settings(model, source, rule=rule, ignore=ignore, head=head, adapter={"kind": "none"})
        student = Student(model, settings, trainable=False)
        export(student, source, settings, directory)
        import_compressed_tensors()
        try:
            error = distance(_logits(_load(directory), row), _logits(student.model, row))
        except Exception as exception:  # noqa: BLE001 (whatever its code raises on layers that it does not take packed)
            said = " ".join(str(exception).split())[:200]
            return f"transformers does not load what a small copy is written to ({type(exception).__name__}: {said})"
    return "" if error <= TOLERANCE else f"of a small copy transformers reads logits that are off by {error:.2g}"


def write_tiny_checkpoint(model: PreTrainedModel, directory: Path) -> None:
    """Write `model` with a tokenizer of eight words, fewer than any tiny model has ids."""
    model.save_pretrained(directory)  # pyright: ignore[reportUnknownMemberType]
    _tiny_tokenizer().save_pretrained(directory)


def tiny_settings(
    model: PreTrainedModel,
    directory: Path,
    *,
    rule: str = "signed",
    ignore: Sequence[str] = ("lm_head",),
    head: str = "none",
    **sections: Any,
) -> Config:
    """Return the settings of a run of the tiny checkpoint in `directory`: groups that fit it, what has none dense."""
    size, misfits = _fitting_groups(model)
    quant = {"group_size": size, "init": "rtn", "rule": rule, "head": head, "ignore": [*ignore, *misfits]}
    return Config.model_validate(
        {"name": "tiny", "model": {"name": str(directory), "dtype": "float32"}, "quant": quant, **sections}
    )


def _fitting_groups(model: PreTrainedModel) -> tuple[int, list[str]]:
    """Return the largest group that fits every matrix, and the last two parts of the names that none fits."""
    modules = cast("Iterable[tuple[str, nn.Module]]", model.named_modules())
    widths = {name: module.in_features for name, module in modules if isinstance(module, nn.Linear)}
    widths |= {name: experts.shape[2] for name, experts in find_fused_experts(model).items()}
    fitting = {name: width for name, width in widths.items() if width % _GROUP_SIZES[-1] == 0}
    size = next(g for g in _GROUP_SIZES if all(width % g == 0 for width in fitting.values()))
    return size, sorted({".".join(name.split(".")[-2:]) for name in widths.keys() - fitting.keys()})


@torch.no_grad()
def _logits(model: Any, row: Tensor) -> Tensor:
    return model(input_ids=row, use_cache=False).logits


def _load(directory: Path) -> Any:
    """Load a checkpoint as transformers does without rayqd, on the CPU."""
    from transformers import AutoConfig

    kind = auto_class(cast(Any, AutoConfig).from_pretrained(directory))
    return kind.from_pretrained(directory, dtype=torch.float32, attn_implementation="eager").eval()


def _tiny_tokenizer() -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["<unk>", "<end>", "a", "b", "c", "d", "e", "f"]
    core = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, "<unk>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>", eos_token="<end>")
