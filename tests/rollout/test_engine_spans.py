"""vLLM's steps are timed while an engine is built, and are vLLM's own again afterwards."""

from contextlib import ExitStack

from rayqd.rollout.engine_spans import _then_wrap_runner, _wrap_all
from rayqd.spans import take_spans


class Runner:
    def capture_model(self) -> int:
        return 5


class Base:
    def load_model(self) -> str:
        return "loaded"

    def init_device(self) -> None:
        self.model_runner = Runner()


class Worker(Base):
    pass


def test_a_step_is_recorded_and_returns_what_it_did_before() -> None:
    take_spans("")
    original = Base.load_model
    with ExitStack() as patches:
        _wrap_all(patches, Base, {"load_model": "load", "not_in_this_version": "never"})
        _wrap_all(patches, Worker, {"load_model": "twice"})  # inherited: recorded where it is defined, once
        assert Worker().load_model() == "loaded"
    assert [s.name for s in take_spans("rollout-0")] == ["load"]
    assert Base.load_model is original
    assert "load_model" not in vars(Worker)


def test_the_runner_that_a_worker_makes_is_timed_from_then_on_and_not_afterwards() -> None:
    take_spans("")
    worker = Worker()
    with ExitStack() as patches:
        _then_wrap_runner(Base.init_device, patches)(worker)
        assert worker.model_runner.capture_model() == 5
    assert [s.name for s in take_spans("rollout-0")] == ["vLLM: capture CUDA graphs"]
    assert worker.model_runner.capture_model() == 5
    assert take_spans("rollout-0") == ()
