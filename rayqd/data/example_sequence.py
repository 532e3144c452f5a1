"""Examples that are made when they are asked for: one method says how, and places and slices are as a list has them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import overload

from rayqd.types import Example


class ExampleSequence(Sequence[Example], ABC):
    """To be derived from, with `__len__` and `example_at`."""

    __slots__ = ()

    @abstractmethod
    def example_at(self, position: int) -> Example:
        """Return the example at `position`, which is there: 0 to the length less one."""

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> list[Example]: ...
    def __getitem__(self, index: int | slice) -> Example | list[Example]:
        positions = range(len(self))[index]  # IndexError where there is none, and places from the end
        if isinstance(positions, range):
            return [self.example_at(position) for position in positions]
        return self.example_at(positions)
