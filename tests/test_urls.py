"""Places in the file system and at URLs."""

from __future__ import annotations

import pickle
import sys
from pathlib import Path

import pytest
from fsspec.registry import known_implementations

from wsi_saliency.errors import OutputError, SettingsError, SlideError
from wsi_saliency.interruption import Interruption
from wsi_saliency.urls import is_url, located, reaching, shown


@pytest.mark.parametrize("text", ["s3://bucket/slides", "memory://a", "https://host/a.svs", "file:///a"])
def test_urls_are_known_by_their_scheme(text: str) -> None:
    assert is_url(text)


@pytest.mark.parametrize("text", ["slides", "/slides/a.svs", "C://slides", "a:b", "-://x", "://x"])
def test_paths_are_no_urls(text: str) -> None:
    assert not is_url(text)
    assert located(text) == Path(text)


def test_a_url_behaves_like_a_path() -> None:
    slide = located("memory://bucket/a folder/slide #1?.svs")
    assert (slide.name, slide.suffix) == ("slide #1?.svs", ".svs")
    slide.parent.mkdir(parents=True, exist_ok=True)
    slide.write_bytes(b"pixels")
    again = located("MEMORY://bucket/a folder/slide #1?.svs")
    assert again.read_bytes() == b"pixels"
    assert pickle.loads(pickle.dumps(again)) == slide
    assert located(slide) is slide


def test_a_bucket_behaves_like_a_folder(bucket: str) -> None:
    slide = located(f"{bucket}/slides/a b#1?%41.svs")
    slide.write_bytes(b"pixels")
    assert slide.read_bytes() == b"pixels"
    assert slide.stat().st_size == 6
    assert [found.name for found in located(f"{bucket}/slides").iterdir()] == ["a b#1?%41.svs"]
    nothing = pytest.raises(SlideError, match=r"there is nothing of that name")
    with nothing, reaching(slide, SlideError, "cannot be read"):
        (slide.parent / "other.svs").read_bytes()


@pytest.mark.parametrize("url", ["file:///slides/a%20b.svs", "file://localhost/slides/a%20b.svs"])
def test_a_file_url_is_a_path(url: str) -> None:
    assert located(url) == Path("/slides/a b.svs")


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("file://other/slides/a.svs", "names the computer 'other'"),
        ("nope://slides/a.svs", "nobody knows nope:// URLs here"),
        ("s3://bucket/../other/a.svs", "'..' cannot stand in a URL"),
    ],
)
def test_a_url_that_leads_nowhere_is_refused(url: str, words: str) -> None:
    with pytest.raises(SettingsError, match=words) as caught:
        located(url)
    assert str(caught.value).startswith(url)


def test_what_is_missing_is_named_with_what_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "upath", None)
    with pytest.raises(SettingsError, match=r"more packages: pip install wsi-saliency\[cloud\]"):
        located("s3://bucket/a.svs")


def test_the_package_of_a_scheme_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    known = {"class": "no_such_package.FileSystem", "err": "install no_such_package to reach odd"}
    monkeypatch.setitem(known_implementations, "odd", known)
    with pytest.raises(SettingsError, match=r"^odd://a: install no_such_package to reach odd"):
        located("odd://a")


@pytest.mark.parametrize(
    ("url", "text"),
    [
        ("ftp://name:word@host/a.svs", "ftp://host/a.svs"),
        ("https://host/a.svs?X-Amz-Signature=1234", "https://host/a.svs"),
        ("s3://bucket/a?b.svs", "s3://bucket/a?b.svs"),
        ("/a/b@c.svs", "/a/b@c.svs"),
    ],
)
def test_no_secret_is_shown(url: str, text: str) -> None:
    assert shown(url) == text


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (FileNotFoundError("b/k"), "there is nothing of that name"),
        (PermissionError("Forbidden"), "you may not; check the login"),
        (RuntimeError("Unable to locate\ncredentials"), "Unable to locate credentials; name a login"),
        (ConnectionError(), "ConnectionError"),
    ],
)
def test_what_a_store_says_becomes_one_line(error: Exception, words: str) -> None:
    with pytest.raises(OutputError) as caught, reaching("s3://a:b@c/d", OutputError, "cannot be written"):
        raise error
    assert str(caught.value).startswith(f"s3://c/d: cannot be written ({words}")
    assert "\n" not in str(caught.value)


def test_errors_of_ours_and_signals_pass() -> None:
    with pytest.raises(SlideError, match=r"^as it is$"), reaching("s3://c", OutputError, "cannot be read"):
        raise SlideError("as it is")
    with pytest.raises(Interruption), reaching("s3://c", OutputError, "cannot be read"):
        raise Interruption(15)
