"""What a reload of weights must not move: CUDA graphs that were captured before go on reading the old addresses.

vLLM's reload copies parameters and buffers back to where they were. What kernels keep beside them it makes anew in many
places, which its issue 48312 lists: workspaces (before its pull request 48438, which 0.26 lacks), sort indices, scales
and zero points of quantized layers, matrices that attention derives from its weights. The graphs read the freed memory;
whatever lands there next is taken for scales, or for locks that the kernel waits for without end. So every tensor
that can be reached from a layer is put back: new values, old address.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, is_dataclass
from functools import partial
from types import CellType, FunctionType, SimpleNamespace
from typing import Any, Literal, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter

from rayqd.errors import WorkerError

_MAX_DEPTH = 8  # layer.quant_method.moe_kernel.fused_experts.... is 5


class _Step(NamedTuple):
    """From an object to something that it holds."""

    kind: Literal["attribute", "item", "cell"]
    key: Any


@dataclass(frozen=True, slots=True)
class _Slot:
    """A place that holds a tensor, and that tensor's memory."""

    layer: str
    root: nn.Module
    steps: tuple[_Step, ...]
    tensor: Tensor  # the object
    memory: Tensor  # another object on the same memory, which is not freed as long as this one is there

    def __str__(self) -> str:
        hidden = ("_parameters", "_buffers", "__dict__")
        return ".".join([self.layer, *(str(step.key) for step in self.steps if step.key not in hidden)])


@contextmanager
def keep_addresses(model: nn.Module) -> Generator[None]:
    """Let every tensor of `model` leave the block as the object, and at the address, that it came with.

    Values written in the block are kept. Raises WorkerError, which names the tensor, where one has gone or has another
    shape, stride or dtype; after any other error the old objects are put back as they were.
    """
    slots = list(_find_slots(model))
    try:
        yield
    except BaseException:
        for slot in slots:
            _put_back(slot)
        raise
    for slot in slots:
        _restore(slot)


def list_addresses(model: nn.Module) -> dict[str, int]:
    """Return where each tensor that can be reached from a layer of `model` lies, by a name for people."""
    return {str(slot): slot.memory.data_ptr() for slot in _find_slots(model)}


def _find_slots(model: nn.Module) -> Iterator[_Slot]:
    seen: set[int] = set()
    for name, layer in cast("Iterable[tuple[str, nn.Module]]", model.named_modules()):
        for steps, tensor in _walk(layer, (), seen):
            yield _Slot(name, layer, steps, tensor, tensor.detach())


def _walk(owner: object, steps: tuple[_Step, ...], seen: set[int]) -> Iterator[tuple[tuple[_Step, ...], Tensor]]:
    if id(owner) in seen or len(steps) > _MAX_DEPTH:
        return
    seen.add(id(owner))
    for step, value in _list_parts(owner):
        if isinstance(value, Tensor):
            if _has_memory(value):
                yield (*steps, step), value
        elif not isinstance(value, nn.Module):  # each layer has its own turn
            yield from _walk(value, (*steps, step), seen)


def _list_parts(owner: object) -> list[tuple[_Step, object]]:
    """Return what `owner` holds: of vLLM's objects, containers, partial functions and closures."""
    match owner:
        case dict():
            items = cast("dict[object, object]", owner).items()
            return [(_Step("item", key), value) for key, value in items]
        case list() | tuple():
            parts = cast("list[object] | tuple[object, ...]", owner)
            return [(_Step("item", index), value) for index, value in enumerate(parts)]
        case partial():
            return [(_Step("attribute", name), getattr(cast("object", owner), name)) for name in ("func", "keywords")]
        case FunctionType():
            return [(_Step("cell", index), _read_cell(cell)) for index, cell in enumerate(owner.__closure__ or ())]
        case _ if _is_vllms(owner):
            return [(_Step("attribute", name), value) for name, value in vars(owner).items() if name != "_modules"]
        case _:
            return []


def _is_vllms(owner: object) -> bool:
    """Return whether `owner` is a layer, a record, or an object of vLLM's; not its settings, nor compiled code."""
    module = type(owner).__module__
    if isinstance(owner, type) or module.startswith(("vllm.config", "vllm.compilation")):
        return False
    known = isinstance(owner, nn.Module | SimpleNamespace) or is_dataclass(owner) or module.partition(".")[0] == "vllm"
    return known and hasattr(owner, "__dict__")


def _has_memory(tensor: Tensor) -> bool:
    uninitialized = isinstance(tensor, UninitializedParameter | UninitializedBuffer)
    return not uninitialized and tensor.layout is torch.strided and not tensor.is_meta and tensor.numel() > 0


def _restore(slot: _Slot) -> None:
    """Copy the present values to where the old ones were, and put the old object back."""
    present = _read(slot)
    if not isinstance(present, Tensor):
        raise WorkerError(_explain(slot, "left nothing there"))
    if present.data_ptr() == slot.memory.data_ptr() and _layout(present) == _layout(slot.memory):
        return
    if present.is_meta or _layout(present) != _layout(slot.memory):
        raise WorkerError(_explain(slot, f"left {_describe(present)}"))
    with torch.inference_mode():  # as vLLM makes some of them
        slot.memory.copy_(present)
    _put_back(slot)


def _put_back(slot: _Slot) -> None:
    if slot.tensor.data_ptr() != slot.memory.data_ptr():
        slot.tensor.data = slot.memory
    if _read(slot) is not slot.tensor:
        _write(slot.root, slot.steps, slot.tensor)


def _read(slot: _Slot) -> object:
    """Return what is there now, which may be held by other objects than before; None where nothing is."""
    value: object = slot.root
    for step in slot.steps:
        value = _read_part(value, step)
    return value


def _read_part(owner: Any, step: _Step) -> object:
    try:
        match step.kind:
            case "attribute":
                own = cast("dict[str, object]", getattr(owner, "__dict__", {}))
                return own[step.key] if step.key in own else getattr(owner, step.key)
            case "item":
                return owner[step.key]
            case "cell":
                return _read_cell(owner.__closure__[step.key])
    except (AttributeError, IndexError, KeyError, TypeError):
        return None


def _read_cell(cell: CellType) -> object:
    try:
        return cell.cell_contents
    except ValueError:  # of a name that is not bound yet
        return None


def _write(root: object, steps: tuple[_Step, ...], value: object) -> None:
    owner: Any = root
    for step in steps[:-1]:
        owner = _read_part(owner, step)
    last = steps[-1]
    match owner:
        case None:
            return
        case tuple():
            parts = list(cast("tuple[object, ...]", owner))
            parts[last.key] = value
            make = getattr(type(cast("object", owner)), "_make", tuple)  # of a named tuple
            _write(root, steps[:-1], make(parts))
        case _ if last.kind == "cell":
            owner.__closure__[last.key].cell_contents = value
        case _ if last.kind == "item":
            owner[last.key] = value
        case _:
            object.__setattr__(owner, last.key, value)  # of a frozen dataclass too


def _layout(tensor: Tensor) -> tuple[torch.Size, tuple[int, ...], torch.dtype]:
    return tensor.shape, tensor.stride(), tensor.dtype


def _describe(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)} with strides {list(tensor.stride())}"


def _explain(slot: _Slot, what: str) -> str:
    return (
        f"vLLM's reload of the weights {what} where {slot} was {_describe(slot.memory)}, and its CUDA graphs would go "
        "on reading the old one: use another vLLM of 0.26 to 0.33"
    )
