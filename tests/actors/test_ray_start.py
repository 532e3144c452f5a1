"""Ray that does not start, or a cluster that does not answer: one line with the mend; what was slow is tried again."""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
from ray._private.utils import check_version_info
from ray.exceptions import AuthenticationError

from rayqd.actors import ray_start
from rayqd.actors.connection import connect
from rayqd.actors.ray_start import MAX_ATTEMPTS, start_ray
from rayqd.config import Config
from rayqd.errors import ConfigError, PlacementError, RayqdError, StorageError

# As Ray's node.py, services.py and gcs client say it.
SLOW = [
    "The current node timed out during startup. This could happen because some of the raylet failed to startup or the "
    "GCS has become overloaded.",
    "Timed out waiting for node info for node_id=ab12.",
    "Failed to start GCS.  Last 0 lines of error files:\n\n.Please check gcs_server.out for details.",
    "Head node temp_dir not found in NodeInfo, either GCS or head node's raylet may not have started successfully.",
    "Failed to start a dashboard.",
]


@pytest.fixture(autouse=True)
def no_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(ray_start, "_PAUSE_SECONDS", 0.0)


def failing(*errors: Exception):
    """A call of ray.init that raises `errors` one after the other, and then succeeds."""
    left: Iterator[Exception] = iter(errors)

    def init() -> str:
        error = next(left, None)
        if error is not None:
            raise error
        return "context"

    return init


def line(error: type[RayqdError], config: Config | None = None) -> str:
    with pytest.raises(error) as caught, connect(config or Config()):
        pass
    text = str(caught.value)
    assert "\n" not in text
    return text


@pytest.mark.parametrize("text", SLOW)
def test_what_took_too_long_is_tried_again_and_told(text: str) -> None:
    notices: list[str] = []
    errors = [RuntimeError(text)] * (MAX_ATTEMPTS - 1)
    assert start_ray(failing(*errors), None, notices.append) == "context"
    assert notices == [
        f"Ray was too slow to start; trying again ({attempt} of {MAX_ATTEMPTS})"
        for attempt in range(2, MAX_ATTEMPTS + 1)
    ]


@pytest.mark.parametrize("text", SLOW)
def test_what_stays_too_slow_says_so(text: str) -> None:
    with pytest.raises(PlacementError, match=f"^Ray did not start in {MAX_ATTEMPTS} attempts"):
        start_ray(failing(*[Exception(text)] * MAX_ATTEMPTS), None, [].append)


def test_what_is_wrong_for_good_is_tried_once() -> None:
    notices: list[str] = []
    with pytest.raises(PlacementError, match=r"^Ray does not start: TypeError: what is this"):
        start_ray(failing(TypeError("what is this")), None, notices.append)
    assert notices == []


def test_an_interrupt_is_no_failure_of_ray() -> None:
    def init() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        start_ray(init, None, [].append)


def test_a_temporary_directory_too_deep_for_sockets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    deep = tmp_path / ("d" * 100)
    deep.mkdir()
    monkeypatch.setenv("RAY_TMPDIR", str(deep))
    text = line(ConfigError)
    assert text.startswith(f"RAY_TMPDIR={deep} is too deep for Ray: the names of its sockets would have ")
    num_bytes = int(re.findall(r"would have (\d+) bytes", text)[0])
    assert num_bytes > len(str(deep)) > 100
    assert "107" in text
    assert text.endswith("set RAY_TMPDIR=/tmp")


def test_a_temporary_directory_that_cannot_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "file"
    file.write_text("")
    monkeypatch.setenv("RAY_TMPDIR", str(file / "ray"))
    assert line(StorageError) == (
        f"Ray cannot work in {file}/ray (Not a directory): set RAY_TMPDIR to a directory with room that this user can "
        "write"
    )


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("foo://bar:1", "RAY_ADDRESS=foo://bar:1 has the scheme foo://, which Ray has not: write host:6379, "),
        ("http://bar:8265", "RAY_ADDRESS=http://bar:8265 has the scheme http://, which Ray has not: write host:6379, "),
        ("somehost", "RAY_ADDRESS=somehost has no port: write host:6379 or ray://host:10001"),
        ("ray://somehost", "RAY_ADDRESS=ray://somehost has no port: write host:6379 or ray://host:10001"),
        ("host:port", "RAY_ADDRESS=host:port has no port: write host:6379 or ray://host:10001"),
    ],
)
def test_an_address_that_is_none(address: str, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", address)
    assert line(ConfigError).startswith(said)


@pytest.mark.parametrize("prefix", ["", "ray://"])
def test_an_address_that_nobody_listens_at_is_found_out_at_once(prefix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"{prefix}127.0.0.1:{listener.getsockname()[1]}"
    assert line(PlacementError, Config(ray={"address": address})) == (
        f"no Ray cluster answers at {address}: Connection refused; is it running, and the port open from here?"
    )
    monkeypatch.setenv("RAY_ADDRESS", address)
    assert line(PlacementError).endswith(
        "RAY_ADDRESS may be left over from another cluster: unset it to start Ray here"
    )


def test_no_cluster_to_find_by_itself() -> None:
    error = ConnectionError("Could not find any running Ray instance. Please specify the one to connect to")
    with pytest.raises(PlacementError, match=r"^no Ray runs on this machine: start one \(`ray start --head`\), "):
        start_ray(failing(error), "auto", [].append)


def test_a_cluster_of_another_version_names_both() -> None:
    with pytest.raises(RuntimeError) as mismatch:
        check_version_info({"ray_version": "2.9.0", "python_version": "3.9.1"}, "here")
    with pytest.raises(ConfigError) as caught:
        start_ray(failing(mismatch.value), "auto", [].append)
    assert str(caught.value).startswith("the cluster at auto runs Ray 2.9.0 on Python 3.9.1, and this is Ray ")
    assert f"Ray {ray.__version__} on Python" in str(caught.value)
    assert 'pip install "ray==2.9.0"' in str(caught.value)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            ValueError("The configured object store size (20.0 GB) exceeds /dev/shm size (0.06 GB). This will harm"),
            "/dev/shm is too small",
        ),
        (RuntimeError("Failed to start GCS. Address already in use"), "a port that Ray was told to take is taken"),
        (OSError(28, "No space left on device"), r"Ray cannot work in .* \(No space left on device\)"),
    ],
)
def test_what_the_machine_lacks_is_told_with_the_mend(error: Exception, said: str) -> None:
    with pytest.raises(RayqdError, match=said):
        start_ray(failing(error), None, [].append)


def test_a_cluster_that_wants_a_token_says_how_to_give_it() -> None:
    error = AuthenticationError("InvalidAuthToken: wrong")
    with pytest.raises(PlacementError, match="set RAY_AUTH_MODE=token"):
        start_ray(failing(error), "auto", [].append)
