"""What several tests of a learner need."""

import pytest
from torch import Tensor

from tests.learner.payload_batches import random_heads, random_states


@pytest.fixture
def heads() -> tuple[Tensor, Tensor]:
    return random_heads()


@pytest.fixture
def states() -> tuple[Tensor, Tensor]:
    return random_states()
