"""What is recorded of the software that a run was made with."""

from __future__ import annotations

import hashlib

from rayqd.config import Config
from rayqd.runs.environment import collect_environment
from tests.losses import outside_losses


def test_code_from_outside_is_recorded_with_the_digest_of_its_source() -> None:
    path = "tests.losses.outside_losses:squared_error"
    config = Config.model_validate({"distill": {"loss": path}})
    with open(outside_losses.__file__, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    assert collect_environment(config=config).versions[path] == f"sha256 {digest}"


def test_without_it_only_packages_are() -> None:
    assert collect_environment(config=Config()).versions == collect_environment().versions
