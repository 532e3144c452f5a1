"""Which of a run's teachers reads a row: by the value that the row has in `teacher.column`, as `teacher.route` says."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import cast

import numpy as np

from rayqd.config import Config
from rayqd.config.sections.models import OTHERS
from rayqd.data.example_set import ExampleSet
from rayqd.data.left_out import Fault
from rayqd.data.nearest import nearest
from rayqd.data.packed_examples import PackedExamples
from rayqd.data.sources import Rows
from rayqd.errors import DataError

_ROWS_AT_ONCE = 4096
_MOST_VALUES = 8  # that a line lists
_LIKENESS = 0.5  # of a short word to another


class Route:
    """The teachers by value, and how often each value was met."""

    def __init__(self, column: str, teachers: Mapping[str, int]) -> None:
        """`teachers`: by value of `column`, their numbers in the run; that of OTHERS reads every other value."""
        self._column = column
        self._teachers = teachers
        self._met: Counter[str] = Counter()

    @classmethod
    def of(cls, config: Config) -> Route | None:
        """Return the route of a run; None of one with a single teacher."""
        if config.teacher.column is None:
            return None
        numbers = {teacher.name: number for number, teacher in enumerate(config.teachers)}
        return cls(config.teacher.column, {value: numbers[name] for value, name in config.teacher.route.items()})

    def apply(self, found: ExampleSet, rows: Rows) -> ExampleSet:
        """Return the examples `found` in `rows`, each with its teacher.

        Raises DataError, with its location, for a row without the column, or with a value that no teacher is for.
        """
        examples = found.examples
        assert isinstance(examples, PackedExamples)
        teachers = np.zeros(len(examples), dtype=np.uint8)
        for start in range(0, len(examples), _ROWS_AT_ONCE):
            indices = examples.rows[start : start + _ROWS_AT_ONCE].tolist()
            for position, (index, row) in enumerate(rows.fetch_many(indices), start):
                teachers[position] = self._teacher_of(row, rows.location(index))
        return replace(found, examples=replace(examples, teachers=teachers))

    def remarks(self) -> Iterator[str]:
        """Name the values of `teacher.route` that no row had so far, which may be misspelt."""
        for value in self._teachers:
            if value != OTHERS and value not in self._met:
                there = self._met.keys() - self._teachers.keys()
                near = nearest(value, there, likeness=_LIKENESS)
                hint = f"; did you mean {near}?" if near else ""
                yield f'no row that was read has {self._column} = "{value}", which teacher.route names{hint}'

    def _teacher_of(self, row: object | Fault, location: str) -> int:
        value = self._value_of(row, location)
        self._met[value] += 1
        if value in self._teachers:
            return self._teachers[value]
        if OTHERS in self._teachers:
            return self._teachers[OTHERS]
        near = nearest(value, self._teachers, likeness=_LIKENESS)
        hint = f"did you mean {near}? " if near else ""
        raise DataError(
            f'{location}: {self._column} = "{value}" has no teacher: {hint}teacher.route has '
            f"{', '.join(self._teachers)}; name one for it there, or one for all others ({OTHERS}=org/model)"
        )

    def _value_of(self, row: object | Fault, location: str) -> str:
        columns = cast("dict[str, object]", row) if isinstance(row, dict) else {}
        value = columns.get(self._column)
        if isinstance(value, bool):
            return str(value).lower()
        if isinstance(value, str | int):
            return str(value)
        if value is not None:
            raise DataError(
                f"{location}: {self._column}, which teacher.column names, is of type {type(value).__name__}: it must "
                "be a text or a whole number"
            )
        near = nearest(self._column, columns.keys() - {self._column})
        there = ", ".join(list(columns)[:_MOST_VALUES]) or "no columns at all"
        raise DataError(
            f"{location}: has no {self._column}, which teacher.column names: "
            + (f"did you mean {near}? " if near else "")
            + f"it has {there}; every row must say who teaches it (data.filter can leave rows out)"
        )


def count_by_teacher(rows: ExampleSet, num_teachers: int) -> list[int]:
    """Return how many examples each teacher reads."""
    counts = np.zeros(num_teachers, dtype=np.int64)
    for part in rows.parts:
        examples = part.examples
        packed = examples.teachers if isinstance(examples, PackedExamples) else None
        teachers = np.asarray([each.teacher for each in examples], np.int64) if packed is None else packed
        counts += np.bincount(teachers, minlength=num_teachers)
    return counts.tolist()
