"""An export uploaded by huggingface_hub's own client to a hub on this machine, and each way in which that fails."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from rayqd.errors import ConfigError, StorageError
from rayqd.export.hub import check_push, push

TOKEN = "hf_notARealToken"


class FakeHub(ThreadingHTTPServer):
    """The few routes of a hub that an upload takes, as huggingface_hub asks them; keeps what arrives."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Routes)
        self.status = 200  # of every answer but that of whoami
        self.may_log_in = True
        self.tokens: set[str | None] = set()
        self.created: list[dict[str, Any]] = []
        self.files: dict[str, bytes] = {}

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Routes(BaseHTTPRequestHandler):
    server: FakeHub

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        self.server.tokens.add(self.headers["Authorization"])
        if self.path.startswith("/api/whoami-v2"):
            self.answer(200 if self.server.may_log_in else 401, {"name": "me", "type": "user", "orgs": []})
        else:
            self.answer(200, {"id": "me/mine", "sha": "0" * 40, "siblings": []})

    def do_POST(self) -> None:
        self.server.tokens.add(self.headers["Authorization"])
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.server.status != 200:
            self.answer(self.server.status, {"error": "no"})
        elif self.path == "/api/repos/create":
            self.server.created.append(json.loads(body))
            self.answer(200, {"url": f"{self.server.url}/me/mine", "name": "me/mine"})
        elif "/preupload/" in self.path:
            paths = [file["path"] for file in json.loads(body)["files"]]
            modes = [{"path": path, "uploadMode": "regular", "shouldIgnore": False} for path in paths]
            self.answer(200, {"files": modes})
        elif "/commit/" in self.path:
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    self.server.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            self.answer(200, {"commitUrl": f"{self.server.url}/me/mine/commit/1", "commitOid": "1", "success": True})
        else:
            self.answer(200, {})

    def answer(self, status: int, values: dict[str, Any]) -> None:
        body = json.dumps(values).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    server = FakeHub()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    use_hub(server.url, monkeypatch)
    yield server
    server.shutdown()
    server.server_close()


def use_hub(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import HfApi, constants

    monkeypatch.setenv("HF_TOKEN", TOKEN)
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.HfApi", lambda: HfApi(endpoint=url))


@pytest.fixture
def export(tmp_path: Path) -> Path:
    directory = tmp_path / "export"
    directory.mkdir()
    (directory / "README.md").write_text("# A card\n")
    (directory / "model.safetensors").write_bytes(b"\x00\x01weights")
    return directory


@pytest.mark.parametrize(("is_private", "visibility"), [(True, "private"), (False, "public")])
def test_every_file_arrives_in_a_repository_that_is_private_unless_told(
    hub: FakeHub, export: Path, is_private: bool, visibility: str
) -> None:
    check_push("me/mine")
    assert push(export, "me/mine", is_private=is_private) == f"{hub.url}/me/mine"
    assert hub.files == {file.name: file.read_bytes() for file in export.iterdir()}
    (created,) = hub.created
    assert (created["name"], created["organization"]) == ("mine", "me")
    assert created.get("visibility") == visibility or created.get("private") is is_private
    assert hub.tokens - {None} == {f"Bearer {TOKEN}"}  # checking the card's front matter needs none


def test_name_that_no_repository_can_have_is_one_line() -> None:
    with pytest.raises(ConfigError, match=r"flag --push=a/b/c: must be NAME or OWNER/NAME"):
        check_push("a/b/c")


def test_missing_token_is_one_line(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    with pytest.raises(ConfigError, match="there is no token for the hub: run `hf auth login`, or set HF_TOKEN"):
        check_push("me/mine")
    assert hub.tokens == set()


def test_token_that_the_hub_does_not_know_is_one_line_and_stays_untold(hub: FakeHub) -> None:
    hub.may_log_in = False
    with pytest.raises(StorageError, match=r"does not let this token write me/mine \(401\)") as caught:
        check_push("me/mine")
    assert TOKEN not in str(caught.value)


@pytest.mark.parametrize(
    ("status", "message"),
    [(403, r"does not let this token write me/mine \(403\)"), (500, r"did not take me/mine \(500\)")],
)
def test_refusal_is_one_line(hub: FakeHub, export: Path, status: int, message: str) -> None:
    hub.status = status
    with pytest.raises(StorageError, match=message) as caught:
        push(export, "me/mine")
    assert TOKEN not in str(caught.value)
    assert "\n" not in str(caught.value)
    assert hub.files == {}


def test_network_that_is_not_there_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    use_hub("http://127.0.0.1:9", monkeypatch)  # the port of `discard`, at which nothing listens
    with pytest.raises(StorageError, match=r"the hub could not be reached for me/mine .*check the network") as caught:
        check_push("me/mine")
    assert TOKEN not in str(caught.value)
