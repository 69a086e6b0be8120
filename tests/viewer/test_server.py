from __future__ import annotations

import socket

import pytest

from tests.helpers.results import SIZE
from tests.helpers.slides import noise
from tests.helpers.viewed import ask, planted, served, spot
from wsi_saliency.errors import OutputError
from wsi_saliency.viewer.server import HOST, Server
from wsi_saliency.viewer.site import POLICY, Site


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    result = planted(tmp_path_factory.mktemp("slides"), noise(SIZE.h, SIZE.w), [spot(30, 40)])
    with Site([result]) as site, served(site) as server:
        yield server


def path(server, rest=""):
    return f"/{server.site.token}/{rest}"


def test_it_listens_on_this_machine_only(server):
    assert server.server_address[0] == HOST == "127.0.0.1"
    assert server.url == f"http://127.0.0.1:{server.server_address[1]}{path(server)}"


def test_answers_have_their_kind_length_and_policy(server):
    for name, kind in (
        ("r/0/", "text/html"),
        ("r/0/facts.json", "application/json"),
        ("static/view.js", "text/javascript"),
    ):
        reply, body = ask(server, path(server, name))
        assert reply.status == 200
        assert reply.headers["Content-Type"].startswith(kind)
        assert int(reply.headers["Content-Length"]) == len(body) > 0
        assert reply.headers["Content-Security-Policy"] == POLICY
        assert reply.headers["Referrer-Policy"] == "no-referrer"
        assert reply.headers["Cache-Control"] == "no-store"
    reply, _ = ask(server, path(server, "r/0/slide/9/0_0.jpg"))
    assert reply.headers["Cache-Control"] == "private, max-age=3600"


def test_the_policy_allows_no_other_host():
    assert "default-src 'none'" in POLICY
    assert "http" not in POLICY
    assert "unsafe" not in POLICY
    assert "*" not in POLICY


@pytest.mark.parametrize(
    "address", ["/", "/wrong/r/0/", "/TOKEN/static/../site.py", "/TOKEN/static/%2e%2e/site.py"]
)
def test_strangers_and_ways_out_are_refused(server, address):
    reply, body = ask(server, address.replace("TOKEN", server.site.token))
    assert reply.status == 403
    assert server.site.token.encode() not in body


def test_a_page_of_another_name_that_leads_here_is_refused(server):
    assert ask(server, path(server), Host="evil.example")[0].status == 403
    assert ask(server, path(server), Host=f"localhost:{server.server_address[1]}")[0].status == 302


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS"])
def test_there_is_only_reading(server, method):
    reply, _ = ask(server, path(server, "r/0/"), method)
    assert (reply.status, reply.headers["Allow"]) == (405, "GET, HEAD")


def test_head_is_get_without_the_body(server):
    reply, body = ask(server, path(server, "r/0/facts.json"), "HEAD")
    whole = ask(server, path(server, "r/0/facts.json"))[1]
    assert (reply.status, int(reply.headers["Content-Length"]), body) == (200, len(whole), b"")


def test_a_port_that_is_taken_is_named(server):
    with pytest.raises(OutputError, match=r"port \d+: cannot be used .*--port"):
        Server(server.site, server.server_address[1])


def test_nonsense_ends_a_connection_and_not_the_server(server):
    with socket.create_connection(server.server_address[:2], timeout=60) as stranger:
        stranger.sendall(b"\x16\x03\x01 nonsense\r\n\r\n")
        stranger.recv(1000)
    assert ask(server, path(server, "r/0/"))[0].status == 200
