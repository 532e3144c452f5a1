"""What was lost is told from what raised something of its own, through the envelopes of Ray and Ray Train."""

from __future__ import annotations

from pathlib import Path

import pytest
from ray.exceptions import RayActorError, RayTaskError
from ray.train import ControllerError, WorkerGroupError
from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError, WorkerHealthCheckTimeoutError

from rayqd.actors import deaths
from rayqd.actors.deaths import describe_death, find_own_error, is_death, last_words
from rayqd.actors.run_actors import make_error
from rayqd.errors import DeathError, ModelError

DIED = RayActorError(error_msg="The actor died unexpectedly before finishing this task.\n\tpid: 4711\n")
CHECK = WorkerHealthCheckFailedError("A worker health check failed.", failure=DIED)
PEER = RuntimeError("[gloo/transport/tcp/pair.cc:537] Connection closed by peer [127.0.0.1]:5123")
OWN = ModelError("step 3: the gradient is inf or nan")


def group(*errors: Exception) -> WorkerGroupError:
    return WorkerGroupError("a report of many lines", dict(enumerate(errors)))


@pytest.mark.parametrize(
    "error",
    [DIED, group(CHECK), group(PEER, CHECK), group(PEER), ControllerError(DIED), RayTaskError("train", "", DIED)],
)
def test_a_lost_process_is_a_death(error: BaseException) -> None:
    assert is_death(error)
    assert find_own_error(error) is None
    assert describe_death(error) == "its process is gone"


@pytest.mark.parametrize("error", [group(OWN), group(PEER, OWN), group(OWN, CHECK), RayTaskError("train", "", OWN)])
def test_what_raises_an_error_of_ours_is_none_whatever_it_does_to_others(error: BaseException) -> None:
    assert not is_death(error)
    assert find_own_error(error) is OWN


@pytest.mark.parametrize("error", [RuntimeError("expected a tensor"), group(ValueError("no")), KeyError("x")])
def test_what_the_program_raises_is_none(error: BaseException) -> None:
    assert not is_death(error)


def test_it_is_told_how_the_process_was_lost() -> None:
    memory = RayActorError(error_msg="Task was killed due to the node running low on memory.")
    assert describe_death(group(WorkerHealthCheckFailedError("", failure=memory))) == "its machine ran out of memory"
    assert describe_death(group(WorkerHealthCheckTimeoutError("hangs"))) == "it did not answer any more"


def test_the_end_of_its_log_is_what_it_said_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deaths, "find_log_dir", lambda: tmp_path)
    assert last_words(group(CHECK)) == ""
    (tmp_path / "worker-abc-01000000-4711.err").write_text(":job_id:01\n:actor_name:X\na\nb\n\nc\nFatal Python error\n")
    (tmp_path / "worker-abc-01000000-4712.err").write_text("another's\n")
    assert last_words(group(CHECK)) == "b / c / Fatal Python error"


def test_a_controller_whose_node_died_is_not_started_again_since_that_is_the_drivers_own() -> None:
    node = RayActorError(error_msg="The actor died because its node has died. Node Id: 17")
    assert not isinstance(own := make_error(node, "controller"), DeathError)
    assert "(raylet) has died" in str(own)
    assert str(make_error(group(WorkerHealthCheckFailedError("", failure=node)), "learner")) == (
        "the learner died: its node is gone"
    )


def test_what_to_do_where_memory_ran_out_stays_in_the_line() -> None:
    memory = RayActorError(error_msg="Task was killed due to the node running low on memory. was 9.5GB / 10.0GB")
    death = make_error(memory, "learner")
    assert isinstance(death, DeathError)
    assert "its machine ran out of memory" in str(death)
    assert "learner.microbatch_tokens" in str(death)
