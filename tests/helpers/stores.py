"""Stores at URLs, for tests: an S3 server on this machine, which other processes reach, too.

    def test_something(bucket):                       # "s3://bucket-7", empty, of this test only
        located(f"{bucket}/slides/a.svs").write_bytes(b"pixels")

Endpoint and login stand in the environment, where s3fs, botocore and what they start look for them.
"""

from __future__ import annotations

import gc
import itertools
import logging
from typing import TYPE_CHECKING
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
