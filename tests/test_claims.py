"""One run at a time on a place at a URL."""

from __future__ import annotations

import json
import threading
import time

import pytest

from wsi_saliency import claims
from wsi_saliency.claims import Claim, Owner, claimed
from wsi_saliency.errors import BusyError
from wsi_saliency.remote import Remote
from wsi_saliency.urls import located

NAME = ".slide.lock"


@pytest.fixture
def remote(tmp_path):
    return Remote(located(f"memory://{tmp_path.name}"))


@pytest.fixture
def claim(remote):
    def claim(run, folder="here", host="host"):
        return Claim(remote, NAME, Owner(run, folder, host))

    return claim


def test_the_second_does_not_get_it_until_the_first_has_ended(claim, remote, monkeypatch, caplog):
    monkeypatch.setattr(claims, "_POLL", 0.01)
    first, second = claim("1"), claim("2", "there")
    with claimed(first, "slide", wait=False) as check:
        check()
        assert second.holder() == first.owner
        with pytest.raises(BusyError, match=r"^slide: process \d+ on host is working on it$"):
            second.take("slide", wait=False)
        waiting = threading.Thread(target=second.take, args=("slide",), kwargs={"wait": True})
        waiting.start()
        while not caplog.records:
            time.sleep(0.01)
        check()
    waiting.join()
    assert second.is_ours()
    second.release()
    assert remote.read([NAME]) == [None]


@pytest.mark.parametrize(
    "dead", [("1", "elsewhere", "other"), ("2", "here", "host")], ids=["of our run", "whose lock we have"]
)
def test_a_place_is_taken_over_from_who_is_certainly_dead(claim, dead):
    dead = claim(*dead)
    dead.take("slide", wait=False)
    with claimed(claim("1"), "slide", wait=False) as check:
        check()
        assert not dead.is_ours()
        dead.release()  # which is not his any more
        dead.renew()
        check()


def test_a_place_is_taken_over_from_who_was_not_heard_of_for_long(claim, remote, monkeypatch):
    first, second = claim("1"), claim("2", "there")
    first.take("slide", wait=False)
    facts = json.loads(remote.read([NAME])[0])
    remote.write(NAME, json.dumps(facts | {"renewed": time.time() - claims.STALE - 1}).encode())
    assert second.holder() is None
    with claimed(first, "slide", wait=False) as check:
        second.take("slide", wait=False)
        with pytest.raises(BusyError, match="slide: another run has taken it over"):
            check()
    assert second.is_ours()


def test_who_lives_says_so(claim, remote, monkeypatch):
    monkeypatch.setattr(claims, "RENEWED", 0.01)
    with claimed(claim("1"), "slide", wait=False):
        before = remote.read([NAME])
        while remote.read([NAME]) == before:
            time.sleep(0.01)


@pytest.mark.parametrize("content", [b"", b"nothing", b"[]", b'{"renewed": 1}', b'{"renewed": "x"}'])
def test_what_nobody_understands_keeps_nobody_out(claim, remote, content):
    remote.write(NAME, content)
    claim("1").take("slide", wait=False)


def test_a_store_that_does_not_answer_keeps_nobody_at_the_end(claim, monkeypatch):
    monkeypatch.setattr(claims, "_RELEASING", 0.01)
    asked = threading.Event()
    one = claim("1")
    with claimed(one, "slide", wait=False):
        monkeypatch.setattr(Claim, "is_ours", lambda self: asked.wait(60))
    asked.set()
