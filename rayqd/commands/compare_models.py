"""The models of `rayqd compare` that were made elsewhere."""

from __future__ import annotations

import contextlib
from collections.abc import Generator
from pathlib import Path

from rayqd.comparison.jobs import Job
from rayqd.config.comparison.fields import ARMS
from rayqd.errors import ModelError


@contextlib.contextmanager
def _named(job: Job) -> Generator[None]:
    """Begin what is wrong with a model with the arm that names it."""
    try:
        yield
    except ModelError as error:
        raise ModelError(f"{ARMS}{job.arm.name}.path = {job.arm.path}: {error}") from error


def find_arm_model(job: Job) -> Path | None:
    """Return the directory of the model that a run measures as it is; None where it makes its own. Raises ModelError.

    A name on the hub is downloaded.
    """
    if not job.arm.is_made_elsewhere:
        return None
    from rayqd.commands.given_models import find_given_model  # which takes long to import, as the next

    with _named(job):
        return find_given_model(job.arm.path, trusts_code=job.config.model.trust_remote_code)


def check_arm_model(job: Job) -> None:
    """Raise ModelError, with the arm, where its model is not there or cannot be measured against the teacher."""
    from rayqd.commands.given_models import check_given_model

    if directory := find_arm_model(job):
        with _named(job):
            check_given_model(directory, job.config)
