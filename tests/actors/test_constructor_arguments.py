"""What actors are made from is small enough for Ray to keep by itself: an actor whose node went is made again from it.

Ray keeps arguments of up to 100 KiB in its own table (max_direct_call_object_size); larger ones lie on a node.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.cloudpickle import dumps  # pyright: ignore[reportPrivateImportUsage]

from rayqd.actors import remote

KEPT_BYTES = 100 * 1024


class Recorder:
    """Takes the place of an actor class."""

    def __init__(self) -> None:
        self.sizes: list[int] = []

    def remote(self, *args: Any) -> None:
        self.sizes += [len(dumps(arg)) for arg in args]


def test_they_are_small_even_with_a_long_chat_template(
    tiny_config: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder = Recorder()
    monkeypatch.setattr(remote, "_actor_classes", lambda *args, **kwargs: [recorder])
    template = tmp_path / "long.jinja"
    template.write_text("{% for m in messages %}{{ m['content'] }}{% endfor %}" + "{# a long template #}" * 10_000)
    config = tiny_config(data={"chat_template": str(template)})
    placement: Any = SimpleNamespace(gpus_per_worker={"rollout": 1.0, "teacher": 1.0})
    remote.start_rollouts(config, placement)
    remote.start_teachers(config, placement)
    assert len(recorder.sizes) == 2
    assert max(recorder.sizes) < KEPT_BYTES / 2
    assert len(dumps(config)) < KEPT_BYTES / 2  # of which the controller is made
