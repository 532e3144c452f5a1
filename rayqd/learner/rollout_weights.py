"""The weights that the learner publishes: packed codes and scales of the student, as rollout workers load them."""

from __future__ import annotations

from rayqd.config import Config
from rayqd.model.student import Student
from rayqd.model.wire import to_wire
from rayqd.quant import pack
from rayqd.types import WireTensor


def collect_rollout_weights(student: Student, config: Config) -> dict[str, WireTensor]:
    """Return what rollout workers lack: the codes, and where training starts from AWQ norms and biases, which it moved.

    Collective where the student is sharded.
    """
    if config.quant.init != "awq":
        return pack_weights(student)
    dense = {name: to_wire(tensor) for name, tensor in student.dense_tensors().items() if tensor.dim() == 1}
    return pack_weights(student) | dense


def pack_weights(student: Student) -> dict[str, WireTensor]:
    """Return the student's 4-bit codes and scales under compressed-tensors names; collective where it is sharded."""
    return {
        f"{name}.{key}": to_wire(tensor)
        for name, quantized in student.quantized_layers()
        for key, tensor in pack(quantized, student.quant.format).items()
    }
