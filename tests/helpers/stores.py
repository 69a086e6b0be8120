"""Stores at URLs, for tests: an S3 server and a web server on this machine, which other processes reach.

    def test_something(bucket):                       # "s3://bucket-7", empty, of this test only
        located(f"{bucket}/slides/a.svs").write_bytes(b"pixels")

Endpoint and login stand in the environment, where s3fs, botocore and what they start look for them.
"""

from __future__ import annotations

import gc
import hashlib
import itertools
import logging
import threading
import time
from contextlib import suppress
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any
from urllib.request import Request, urlopen

import fsspec
import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

_LOGIN = {
    "AWS_ACCESS_KEY_ID": "someone",
    "AWS_SECRET_ACCESS_KEY": "something",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
}
_numbers = itertools.count()


@pytest.fixture(scope="session")
def s3_endpoint() -> Iterator[str]:
    """Address of an S3 server that runs until the last test; endpoint and login are in the environment."""
    server = pytest.importorskip("moto.server")
    pytest.importorskip("s3fs")
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    running = server.ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    running.start()
    host, port = running.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {**_LOGIN, "AWS_ENDPOINT_URL": f"http://{host}:{port}"}.items():
            patch.setenv(name, value)
        for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN"):
            patch.delenv(name, raising=False)
        yield f"http://{host}:{port}"
    running.stop()


@pytest.fixture
def bucket(s3_endpoint: str) -> Iterator[str]:
    """URL of an empty bucket; what this process has open at its end is closed."""
    name = f"bucket-{next(_numbers)}"
    urlopen(Request(f"{s3_endpoint}/{name}", method="PUT")).close()
    yield f"s3://{name}"
    forget("s3")


def forget(scheme: str) -> None:
    """Close what this process has open at URLs of a kind, and what it remembers of them."""
    fsspec.get_filesystem_class(scheme).clear_instance_cache()
    gc.collect()


class Web:
    """A web server with files in memory, by their quoted paths, that can be told to fail.

    Attributes
    ----------
    files : dict
        Path, such as ``/a%20b.svs``, to content.
    asked : list of (method, path, range)
        What it was asked for.
    failures : dict
        Path to what becomes of the next requests for it: an HTTP status, or how many bytes of the answer are
        sent before the connection breaks.
    ranges : bool
        Whether it sends parts of files.
    pause : float
        Seconds before each answer.
    hang : bool
        Whether it sends no byte of a file while it is so.
    """

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.asked: list[tuple[str, str, str | None]] = []
        self.failures: dict[str, list[int]] = {}
        self.ranges, self.pause, self.hang = True, 0.0, False
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Handler, self))
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"


class _Handler(BaseHTTPRequestHandler):
    def __init__(self, web: Web, *arguments: Any) -> None:
        self.web = web
        super().__init__(*arguments)

    def do_HEAD(self) -> None:
        self.answer()

    def do_GET(self) -> None:
        self.answer()

    def log_message(self, *arguments: Any) -> None:
        pass

    def answer(self) -> None:
        web, path = self.web, self.path.partition("?")[0]
        asked = self.headers.get("Range")
        web.asked.append((self.command, path, asked))
        time.sleep(web.pause)
        failure = web.failures[path].pop(0) if web.failures.get(path) else None
        if failure is not None and 400 <= failure < 600:
            self.send_error(failure)
            return
        content = web.files.get(path)
        if content is None:
            folder = f"{path.rstrip('/')}/"
            names = (name.removeprefix(folder) for name in web.files if name.startswith(folder))
            below = sorted({"".join(name.partition("/")[:2]) for name in names})
            content = "".join(f'<a href="{name}">{name}</a>' for name in below).encode()
            if not below:
                self.send_error(404)
                return
        part, whole = content, len(content)
        if asked and web.ranges and path in web.files:
            first, last = (int(number) for number in asked.removeprefix("bytes=").split("-"))
            part = content[first : last + 1]
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {first}-{first + len(part) - 1}/{whole}")
        else:
            self.send_response(200)
        self.send_header("Content-Length", str(len(part)))
        self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()[:8]}"')
        self.end_headers()
        while web.hang and self.command == "GET":
            time.sleep(0.05)
        if self.command == "GET":
            with suppress(ConnectionError):  # who asked is no more
                self.wfile.write(part if failure is None else part[:failure])


@pytest.fixture
def web() -> Iterator[Web]:
    """A web server of this test."""
    pytest.importorskip("aiohttp")
    web = Web()
    running = threading.Thread(target=web.server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    running.start()
    yield web
    web.server.shutdown()
    web.server.server_close()
    running.join()
    forget("http")
