from __future__ import annotations

import hashlib
import io
import logging
import socket
import sys
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING

import pytest
from huggingface_hub import constants
from huggingface_hub.utils.tqdm import are_progress_bars_disabled

from wsi_saliency.errors import ModelError
from wsi_saliency.models import hub
from wsi_saliency.models.loading import load_classifier

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

REPO, FILE, REVISION = "ORG/model", "models/model.pt", "1.2.3"
COMMIT = 40 * "a"
CONTENT = b"weights of a classifier"


class FakeHub(BaseHTTPRequestHandler):
    """Knows one file of one repository at one tag."""

    def do_HEAD(self) -> None:
        self.answer(b"")

    def do_GET(self) -> None:
        self.answer(CONTENT)

    def answer(self, body: bytes) -> None:
        found = self.path == f"/{REPO}/resolve/{REVISION}/{FILE}"
        gated, private = "gated" in self.path, "private" in self.path
        self.send_response(200 if found else 403 if gated else 401 if private else 404)
        if gated or private:
            self.send_header("X-Error-Code", "GatedRepo" if gated else "RepoNotFound")
        if found:
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("ETag", f'"{hashlib.sha256(CONTENT).hexdigest()}"')
        elif REVISION in self.path:
            self.send_header("X-Error-Code", "EntryNotFound")
        self.send_header("Content-Length", str(len(CONTENT)) if found else "0")
        self.end_headers()
        self.wfile.write(body if found else b"")

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
        """Keep quiet."""


@contextmanager
def fake_hub() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), FakeHub) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_PROGRESS_BARS", True)
    return tmp_path


def point_at(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    template = "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", endpoint + template)


def assert_refused_at_once(monkeypatch: pytest.MonkeyPatch, *said: str) -> None:
    """What takes long, huggingface_hub's download with all its attempts, is not even begun."""
    monkeypatch.setattr(hub, "hf_hub_download", lambda *_, **__: pytest.fail("the Hub is tried again"))
    with pytest.raises(ModelError) as caught:
        hub.HubRepo(REPO, REVISION).file(FILE)
    assert "\n" not in str(caught.value)
    message = str(caught.value)
    assert message.startswith("--model demo works without a network")
    ways = f"(hf download {REPO} --revision {REVISION} --local-dir FOLDER) and give --model FOLDER"
    for part in (ways, *said):
        assert part in message


def test_a_file_is_downloaded_once_and_then_cached(
    empty_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with fake_hub() as endpoint:
        point_at(endpoint, monkeypatch)
        path = hub.HubRepo(REPO, REVISION).file(FILE)
    assert path.read_bytes() == CONTENT
    assert path == empty_cache / "models--ORG--model" / "snapshots" / COMMIT / FILE
    assert hub.HubRepo(REPO, REVISION).file(FILE) == path  # the Hub is gone


def test_another_revision_in_the_cache_is_not_taken(
    empty_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshot = empty_cache / "models--ORG--model" / "snapshots" / COMMIT / "models"
    snapshot.mkdir(parents=True)
    (snapshot / "model.pt").write_bytes(CONTENT)
    (empty_cache / "models--ORG--model" / "refs").mkdir()
    (empty_cache / "models--ORG--model" / "refs" / "main").write_text(COMMIT)
    point_at("http://127.0.0.1:9", monkeypatch)
    assert_refused_at_once(monkeypatch)
    assert hub.HubRepo(REPO).file(FILE).read_bytes() == CONTENT


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("stderr", "level", "shown"),
    [
        (Terminal(), logging.WARNING, True),
        (Terminal(), logging.ERROR, False),  # --quiet
        (io.StringIO(), logging.WARNING, False),
    ],
)
def test_a_download_shows_its_progress_to_who_looks(
    stderr: io.StringIO,
    level: int,
    shown: bool,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(level, hub.log.name)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_PROGRESS_BARS", None)
    monkeypatch.setattr(sys, "stderr", stderr)
    with fake_hub() as endpoint:
        point_at(endpoint, monkeypatch)
        hub.HubRepo(REPO, REVISION).file(FILE)
    assert ("model.pt" in stderr.getvalue() and "100%" in stderr.getvalue()) == shown
    assert not are_progress_bars_disabled("huggingface_hub.http_get")


def test_a_hub_that_refuses_is_not_tried_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    point_at("http://127.0.0.1:9", monkeypatch)
    assert_refused_at_once(monkeypatch, "refused")


def test_a_silent_hub_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "TIMEOUT", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        point_at(f"http://127.0.0.1:{silent.getsockname()[1]}", monkeypatch)
        assert_refused_at_once(monkeypatch, "timed out")


def test_a_name_that_cannot_be_resolved(monkeypatch: pytest.MonkeyPatch) -> None:
    point_at("http://hub.invalid", monkeypatch)
    assert_refused_at_once(monkeypatch)


def test_offline_mode_is_honoured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert_refused_at_once(monkeypatch, "HF_HUB_OFFLINE is set")


def test_a_file_that_the_hub_does_not_have(monkeypatch: pytest.MonkeyPatch) -> None:
    with fake_hub() as endpoint:
        point_at(endpoint, monkeypatch)
        with pytest.raises(ModelError, match="404"):
            hub.HubRepo(REPO, REVISION).file("models/other.pt")


@pytest.mark.parametrize(
    ("repo", "said"), [("ORG/gated", "it is gated; accept its terms"), ("ORG/private", "or it is private")]
)
def test_a_repository_that_wants_a_login_says_how(
    repo: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with fake_hub() as endpoint:
        point_at(endpoint, monkeypatch)
        with pytest.raises(ModelError, match=f"{said}.*log in with: hf auth login"):
            hub.HubRepo(repo).file("config.json")


def test_the_first_name_that_the_hub_has_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    repo = hub.HubRepo(REPO, REVISION)
    with fake_hub() as endpoint:
        point_at(endpoint, monkeypatch)
        path = repo.file("model.safetensors", FILE, "another")
    assert path.read_bytes() == CONTENT
    assert repo.file("model.safetensors", FILE) == path  # the Hub is gone


def test_a_hub_that_cannot_be_reached_is_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    point_at("http://127.0.0.1:9", monkeypatch)
    with pytest.raises(ModelError, match=r"model\.safetensors of ORG/model .* refused"):
        hub.HubRepo(REPO).file("model.safetensors", FILE)


@pytest.mark.parametrize(
    ("name", "revision"),
    [("ORG/name", "main"), ("ORG/na.me-2@v1.0", "v1.0"), ("o_1/n@refs/pr/1", "refs/pr/1")],
)
def test_a_repository_is_named_with_its_revision(name: str, revision: str) -> None:
    assert hub.hub_repo(name, "hf-hub") == hub.HubRepo(name.partition("@")[0], revision)


@pytest.mark.parametrize(
    "name", ["", "name", "ORG/", "a/b/c", "../etc/passwd", "ORG/..", "ORG/a@../..", "ORG/a b", "é/a"]
)
def test_what_names_no_repository_is_refused(name: str) -> None:
    with pytest.raises(ModelError, match="write hf-hub:ORG/NAME"):
        hub.hub_repo(name, "hf-hub")


def test_the_default_classifier_names_the_ways_out(monkeypatch: pytest.MonkeyPatch) -> None:
    point_at("http://127.0.0.1:9", monkeypatch)
    with pytest.raises(
        ModelError, match=r"--model demo .*models/model\.pt of MONAI/pathology_tumor_detection"
    ):
        load_classifier()
