"""A model whose layers lie on several GPUs, and those that these have no room for in the host's memory.

Accelerate's hooks carry the hidden states from GPU to GPU, and the weights of a layer that lies elsewhere to the GPU
that computes it. What is computed is the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast

import psutil
import torch

from rayqd.config import Config
from rayqd.console.quiet import quiet_libraries
from rayqd.errors import PlacementError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

DeviceMap = Mapping[str, int | str]
"""Where each part of a model lies: the index of a GPU, or "cpu"."""

_GIB = 2**30
_HOST = "cpu"
_MOST_OF_THE_HOST = 0.9  # of what is free


def plan_device_map(directory: Path, config: Config, gpu_share: float) -> DeviceMap | None:
    """Return where the teacher's layers lie, of a process that has `gpu_share` GPUs; None where all lie on its device.

    By the model's shapes alone. Raises PlacementError where there is not room enough.
    """
    from rayqd.model.gpu_memory import measure_size, teacher_weight_bytes
    from rayqd.model.load import load_meta_model

    count = torch.cuda.device_count()
    if not count or (config.teacher.gpus_per_worker == 1 and not config.teacher.offload):
        return None
    model = load_meta_model(directory)
    size = measure_size(model, config)
    totals = [int(torch.cuda.get_device_properties(i).total_memory) for i in range(count)]  # pyright: ignore
    gpus = [teacher_weight_bytes(total, gpu_share, size, config) for total in totals]
    host = int(_MOST_OF_THE_HOST * psutil.virtual_memory().available) if config.teacher.offload else 0
    return place_layers(model, config.model.dtype, gpus, host)


def place_layers(model: PreTrainedModel, dtype: str, gpus: Sequence[int], host: int) -> DeviceMap:
    """Spread the decoder layers of `model`, which may be on the meta device, evenly, one after the other.

    `gpus`: bytes of weights that each has room for; `host`: the same of the host's memory, 0 where none may lie there.
    Raises PlacementError where there is not room enough.
    """
    from accelerate.utils import get_balanced_memory, infer_auto_device_map

    from rayqd.model.load import torch_dtype

    room: dict[int | str, int | str] = {**dict(enumerate(gpus)), _HOST: host}
    whole = list(cast("Sequence[str]", model._no_split_modules or []))  # pyright: ignore[reportPrivateUsage]
    with quiet_libraries():
        model.tie_weights()
        balanced = get_balanced_memory(model, room, whole, torch_dtype(dtype))
        places = cast(
            "DeviceMap", infer_auto_device_map(model, balanced, no_split_module_classes=whole, dtype=torch_dtype(dtype))
        )
    if "disk" not in places.values() and (host or _HOST not in places.values()):
        return places
    need = sum(p.numel() for p in model.parameters()) * torch_dtype(dtype).itemsize
    in_host = f" and {host / _GIB:.1f} GiB in the host's memory" if host else ""
    raise PlacementError(
        f"the teacher has {need / _GIB:.1f} GiB of weights, and there is room for {sum(gpus) / _GIB:.1f} GiB on "
        f"{len(gpus)} GPU(s){in_host}: raise teacher.gpus_per_worker{'' if host else ', or set teacher.offload'}"
    )
