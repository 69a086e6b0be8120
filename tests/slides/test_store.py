"""What a store says of slides, and how their bytes come from it."""

from __future__ import annotations

import pytest

from tests.helpers.dicom import of_series
from wsi_saliency.errors import SlideError
from wsi_saliency.slides import store
from wsi_saliency.slides.store import Facts, facts_of, fetch, parts_of
from wsi_saliency.urls import located

CONTENT = bytes(range(256)) * 40


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(store, "WAITS", (0.0, 0.0))


@pytest.fixture
def memory(request):
    """A folder at a memory:// URL, of this test only."""
    folder = located(f"memory://{request.node.name}")
    folder.mkdir(parents=True, exist_ok=True)

    def write(name, content=CONTENT):
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
        return file

    return write


def fetched(place):
    (part,) = parts_of(place)
    return b"".join(fetch(place, part))


def names(place):
    return [str(part.name) for part in parts_of(place)]


@pytest.mark.parametrize(
    ("info", "facts"),
    [
        ({"size": 5, "ETag": 'W/"ab"', "LastModified": "today"}, Facts(5, "ab")),
        ({"size": None, "Last-Modified": "today"}, Facts(None, "today")),
        ({"size": 5, "created": 7.5}, Facts(5, "7.5")),
        ({"size": 5}, Facts(5)),
    ],
)
def test_facts_are_taken_from_what_stores_say(info, facts):
    assert Facts.of(info) == facts


def test_the_facts_of_a_path_are_those_of_its_file(tmp_path):
    (tmp_path / "a.svs").write_bytes(CONTENT)
    assert facts_of(tmp_path / "a.svs") == Facts(len(CONTENT))
    with pytest.raises(SlideError, match="there is nothing of that name"):
        facts_of(tmp_path / "b.svs")


def test_all_bytes_come_block_by_block(bucket, web, memory, monkeypatch):
    monkeypatch.setattr(store, "_BLOCK", 3000)
    at_s3 = located(f"{bucket}/a b#1?%41.svs")
    at_s3.write_bytes(CONTENT)
    web.files["/a%20b.svs"] = CONTENT
    for place in (at_s3, located(f"{web.url}/a%20b.svs?X-Amz-Signature=1"), memory("a.svs")):
        assert fetched(place) == CONTENT
    ranges = [asked for method, _, asked in web.asked if method == "GET"]
    assert ranges == ["bytes=0-2999", "bytes=3000-5999", "bytes=6000-8999", "bytes=9000-10239"]


def test_a_server_without_ranges_sends_the_file_whole(web):
    web.files["/a.svs"], web.ranges = CONTENT, False
    assert fetched(located(f"{web.url}/a.svs")) == CONTENT


def test_what_breaks_is_asked_for_again_from_there(web, monkeypatch):
    monkeypatch.setattr(store, "_BLOCK", 4000)
    web.files["/a.svs"] = CONTENT
    place = located(f"{web.url}/a.svs")
    (part,) = parts_of(place)
    web.failures["/a.svs"] = [503, 100]
    assert b"".join(fetch(place, part)) == CONTENT
    assert [asked for *_, asked in web.asked[-5:]] == [
        *["bytes=0-3999"] * 3,
        "bytes=4000-7999",
        "bytes=8000-10239",
    ]


@pytest.mark.parametrize(
    ("failures", "words"),
    [
        ([500] * 20, "the server answers 500"),
        ([10] * 20, "payload"),
        ([403] * 20, "you may not"),
    ],
)
def test_what_does_not_come_is_one_line_without_the_signature(web, failures, words):
    web.files["/a.svs"] = CONTENT
    place = located(f"{web.url}/a.svs?X-Amz-Signature=secret")
    (part,) = parts_of(place)
    web.failures["/a.svs"] = failures
    with pytest.raises(SlideError, match=words) as caught:
        list(fetch(place, part))
    assert str(caught.value).startswith(f"{web.url}/a.svs: the slide cannot be fetched (")
    assert "secret" not in str(caught.value) + str(caught.value.__cause__)
    assert "\n" not in str(caught.value)


def test_a_slide_that_is_shorter_than_it_was_said_to_be_is_refused(memory):
    place = memory("a.svs")
    (part,) = parts_of(place)
    place.write_bytes(CONTENT[:100])
    with pytest.raises(SlideError, match="it ends after 100 of 10240 bytes"):
        list(fetch(place, part))


@pytest.mark.parametrize(("status", "words"), [(403, "you may not"), (404, "there is nothing of that name")])
def test_what_is_refused_is_asked_for_once(web, status, words):
    web.files["/a.svs"], web.failures["/a.svs"] = CONTENT, [status] * 20
    with pytest.raises(SlideError, match=words):
        parts_of(located(f"{web.url}/a.svs"))
    assert len(web.asked) == 2  # HEAD, and GET where servers do not know that


def test_a_store_that_does_not_answer_is_asked_once(web, monkeypatch):
    monkeypatch.setattr(store, "_ANSWER", 0.2)
    web.files["/a.svs"], web.pause = CONTENT, 2.0
    with pytest.raises(SlideError, match="the slide cannot be read \\(there is no answer\\)"):
        parts_of(located(f"{web.url}/a.svs"))
    assert len(web.asked) == 1


def test_nobody_there_is_one_line(bucket, web):
    for url in (f"{bucket}/none.svs", "s3://no-such-bucket-anywhere/a.svs"):
        with pytest.raises(SlideError, match=f"^{url}: the slide cannot be read \\(") as caught:
            parts_of(located(url))
        assert "\n" not in str(caught.value)
    web.server.server_close()
    with pytest.raises(SlideError, match="Cannot connect"):
        parts_of(located(f"{web.url}/a.svs"))


def test_an_empty_slide_and_a_folder_are_refused(memory):
    with pytest.raises(SlideError, match="the file is empty"):
        parts_of(memory("a.svs", b""))
    with pytest.raises(SlideError, match="is a folder"):
        parts_of(memory("b.svs/x").parent)


def test_a_mirax_slide_has_the_folder_beside_it(memory):
    slide = memory("s/a.mrxs")
    for name in ("s/a/Slidedat.ini", "s/a/Data0000.dat", "s/b/Slidedat.ini", "s/ab.dat"):
        memory(name)
    assert names(slide) == ["a.mrxs", "a/Data0000.dat", "a/Slidedat.ini"]


def test_a_dicom_slide_has_the_files_of_its_series(memory, bucket, tmp_path):
    for name, series in (("b.dcm", "1.2"), ("a.dcm", "1.2"), ("c.dcm", "1.3"), ("d.dicom", "1.2")):
        content = of_series(series)
        memory(f"s/{name}", content)
        located(f"{bucket}/s/{name}").write_bytes(content)
    memory("s/e.dcm", b"no DICOM")
    for place in (memory("s/b.dcm", of_series("1.2")), located(f"{bucket}/s/b.dcm")):
        found = names(place)
        assert (found[0], sorted(found)) == ("b.dcm", ["a.dcm", "b.dcm", "d.dicom"])


def test_an_index_of_hamamatsu_names_its_files(memory):
    index = (
        b"[Virtual Microscope Specimen]\r\nNoLayers=1\r\nImageFile=a.jpg\r\nMapFile=map.jpg\r\nx=../y.jpg\r\n"
    )
    for name in ("s/a.jpg", "s/map.jpg", "s/other.jpg"):
        memory(name)
    found = names(memory("s/slide.vms", index))
    assert (found[0], sorted(found)) == ("slide.vms", ["a.jpg", "map.jpg", "slide.vms"])
