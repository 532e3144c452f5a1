"""Which of a run's teachers reads a row: by the value that the row has in `teacher.column`, as `teacher.route` says."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from typing import cast

import numpy as np
from numpy.typing import NDArray

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
_MOST_CHARACTERS = 60  # of a value in a line
_MOST_OTHERS = 1000  # different values without a name that are looked at for one that is misspelt
_LIKENESS = 0.5  # of a short word to another


class Route:
    """The teachers by value, and which values were met."""

    def __init__(self, column: str, teachers: Mapping[str, int]) -> None:
        """`teachers`: by value of `column`, their numbers in the run; that of OTHERS reads every other value."""
        self._column = column
        self._teachers = teachers
        self._named: set[str] = set()  # of the values that were met, those that have a teacher of their own
        self._others: set[str] = set()  # and the first of the rest, as a column of texts has as many as rows

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
            if value != OTHERS and value not in self._named:
                near = _nearest(value, self._others)
                hint = f"; did you mean {near}?" if near else ""
                yield f"no row to train on has {self._column} = {_quoted(value)}, which teacher.route names{hint}"

    def _teacher_of(self, row: object | Fault, location: str) -> int:
        value = self._value_of(row, location)
        if value in self._teachers:
            self._named.add(value)
            return self._teachers[value]
        if OTHERS in self._teachers:
            if len(self._others) < _MOST_OTHERS:
                self._others.add(value)
            return self._teachers[OTHERS]
        near = _nearest(value, self._teachers)
        hint = f"did you mean {near}? " if near else ""
        raise DataError(
            f"{location}: {self._column} = {_quoted(value)} has no teacher: {hint}teacher.route has "
            f"{_listed(self._teachers)}; name one for it there, or one for all others ({OTHERS}=org/model)"
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
        there = _listed(columns) or "no columns at all"
        raise DataError(
            f"{location}: has no {self._column}, which teacher.column names: "
            + (f"did you mean {near}? " if near else "")
            + f"it has {there}; every row must say who teaches it (data.filter can leave rows out)"
        )


def count_by_teacher(rows: ExampleSet, num_teachers: int) -> list[int]:
    """Return how many examples each teacher reads."""
    counts = np.zeros(num_teachers, dtype=np.int64)
    for teachers in teachers_by_source(rows):
        counts += np.bincount(teachers, minlength=num_teachers)
    return counts.tolist()


def teachers_by_source(rows: ExampleSet) -> Iterator[NDArray[np.uint8]]:
    """Yield the number of each example's teacher, [N], of one source after the other."""
    for part in rows.parts:
        examples = part.examples
        if not isinstance(examples, PackedExamples):
            yield np.asarray([each.teacher for each in examples], np.uint8)
        elif examples.teachers is None:
            yield np.zeros(len(examples), np.uint8)
        else:
            yield examples.teachers


def _nearest(value: str, there: Collection[str]) -> str | None:
    return nearest(value, there, likeness=_LIKENESS) if len(value) <= _MOST_CHARACTERS else None


def _quoted(value: str) -> str:
    """Write a value in quotes, on one line, and of a long one its beginning."""
    if len(value) > _MOST_CHARACTERS:
        return f"{json.dumps(value[:_MOST_CHARACTERS], ensure_ascii=False)}… ({len(value):,} characters)"
    return json.dumps(value, ensure_ascii=False)


def _listed(names: Collection[str]) -> str:
    """List the first few."""
    left = len(names) - _MOST_VALUES
    return ", ".join(list(names)[:_MOST_VALUES]) + (f" and {left:,} more" if left > 0 else "")
