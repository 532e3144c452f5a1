"""Where Ray's own types fall short: one cast each, so that nothing else needs one.

A handle is an `ActorProxy[T]`: T's methods under `@ray.method` have a typed `.remote(...)`, and an editor finds them.
Ray has no types for the options of a method, nor for a variable number of arguments or results: see `Pool.call`.
"""

# pyright: reportUnknownMemberType=false
# Ray's signatures are partly without types.

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar, cast

import ray
from ray import ObjectRef
from ray.actor import ActorHandle, ActorProxy

from rayqd.pipeline import Ref

T = TypeVar("T")


def fetch(ref: Ref[T]) -> T:
    """Return the value of `ref`, which is Ray's; ObjectLostError if it was lost with its node."""
    return ray.get(cast("ObjectRef[T]", ref))


def fetch_all(refs: Sequence[Ref[T]]) -> list[T]:
    """Return the values of `refs`, fetched at the same time; ObjectLostError if one was lost with its node."""
    return ray.get(cast("Sequence[ObjectRef[T]]", refs))


def as_argument(ref: Ref[T]) -> T:
    """Type `ref` as its value: Ray fetches an argument that is a reference before it calls the method."""
    return cast(T, ref)


def wait(refs: Sequence[ObjectRef[T]], timeout_seconds: float) -> tuple[list[ObjectRef[T]], list[ObjectRef[T]]]:
    """Return which of `refs` are ready, all of them or those after `timeout_seconds`, and which are not."""
    if not refs:
        return [], []
    return cast(
        "tuple[list[ObjectRef[T]], list[ObjectRef[T]]]",
        ray.wait([*refs], num_returns=len(refs), timeout=timeout_seconds),
    )


def put(value: T) -> ObjectRef[T]:
    """Store `value` where every process can fetch it, for as long as some process refers to it."""
    return ray.put(value)


def kill(actor: ActorProxy[Any]) -> None:
    """End the actor's process; it is not restarted."""
    ray.kill(cast("ActorHandle[Any]", actor))
