"""What the trials of a sweep have in common is made once: their data, and their frozen teachers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Generic, TypeVar

from rayqd.config import Config
from rayqd.data import ExampleSet

Key = tuple[object, ...]
Rows = tuple[ExampleSet, ExampleSet]  # training and held-out
Data = dict[Key, Rows]  # by `data_key`
TeacherT = TypeVar("TeacherT")  # a handle of a teacher's actor


def teacher_key(config: Config) -> Key:
    """Return a key that is equal for two trials just when one teacher can serve both."""
    model, teacher = config.model, config.teacher
    temperature = None if teacher.payload == "hidden" else config.distill.temperature  # what others send depends on it
    return (model.name, model.revision, model.dtype, teacher.model_dump_json(), temperature)


def data_key(config: Config) -> Key:
    """Return a key that is equal for two trials just when they read the same rows as the same tokens."""
    model, num_sequences = config.model, config.learner.steps * config.learner.batch_size
    return (
        model.name, model.revision, config.seed, num_sequences, config.data.model_dump_json(), config.eval.source,
        config.eval.split, config.eval.subset, tuple(sorted(config.eval.columns.items())), config.eval.num_rows,
        config.teacher.column, tuple(sorted(config.teacher.route.items())),
    )  # fmt: skip


class SharedResources(Generic[TeacherT]):
    """Makes the data and the teachers that a trial asks for, unless an earlier one has asked for the same.

    A teacher that no trial uses any more goes when another one is asked for, which needs its room.
    """

    def __init__(
        self,
        load_data: Callable[[Config], Rows],
        start_teachers: Callable[[Config, int], list[TeacherT]],
        end_teacher: Callable[[TeacherT], None],
        data: Data | None = None,
    ) -> None:
        self._load_data = load_data
        self._start_teachers = start_teachers  # of a trial, and how many teachers there were before
        self._end_teacher = end_teacher
        self._data: Data = {**(data or {})}
        self._teachers: dict[Key, list[TeacherT]] = {}
        self._users: Counter[Key] = Counter()
        self._num_started = 0

    def data(self, config: Config) -> Rows:
        """Return training and held-out rows, loaded once."""
        key = data_key(config)
        if key not in self._data:
            self._data[key] = self._load_data(config)
        return self._data[key]

    def borrow_teachers(self, config: Config) -> list[TeacherT]:
        """Return the teachers of a trial, which is to give them back."""
        key = teacher_key(config)
        if key not in self._teachers:
            self._end_idle()
            self._teachers[key] = self._start_teachers(config, self._num_started)
            self._num_started += 1
        self._users[key] += 1
        return self._teachers[key]

    def return_teachers(self, config: Config) -> None:
        """Take back what a trial borrowed."""
        self._users[teacher_key(config)] -= 1

    def _end_idle(self) -> None:
        for key in [key for key in self._teachers if self._users[key] == 0]:
            for teacher in self._teachers.pop(key):
                self._end_teacher(teacher)
