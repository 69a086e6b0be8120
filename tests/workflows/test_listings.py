"""Slides at URLs: found by one listing, with the names that results have below it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers.dicom import of_series
from wsi_saliency.errors import SlideError
from wsi_saliency.slides import store
from wsi_saliency.urls import located
from wsi_saliency.workflows import listings, lists
from wsi_saliency.workflows.discovery import find_paths, find_slides

NAMES = (
    *(
        "s/b.SVS",
        "s/a.ndpi",
        "s/x/y/c d#1?%41.tiff",
        "s/notes.txt",
        "s/.hidden.svs",
        "s/m.mrxs",
        "s/m/Data.dat",
    ),
    *("s/done/run.json", "s/done/saliency.ome.tif", "s/mine/saliency.ome.tif", "other/d.svs"),
    *("s/.b.0123abcd.growing/new/saliency.ome.tif", "s/sub/b.svs", "s/m/Data.dat"),
)
BELOW = {
    "a.ndpi": "a",
    "b.SVS": "b",
    "m.mrxs": "m",
    "mine/saliency.ome.tif": "mine/saliency.ome",
    "sub/b.svs": "sub/b",
    "x/y/c d#1?%41.tiff": "x/y/c d#1?%41",
}


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(store, "WAITS", (0.0,))


@pytest.fixture(params=["memory", "s3"])
def root(request):
    """A folder with slides and other files."""
    url = "memory://listed" if request.param == "memory" else request.getfixturevalue("bucket")
    for name in NAMES:
        place = located(f"{url}/{name}")
        if request.param == "memory":
            place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(b"{}")
    return url


def found(*inputs):
    return {str(job.slide): job.name.as_posix() for job in find_slides(inputs)}


def test_a_folder_is_listed_and_relative_paths_are_kept(root):
    expected = {f"{root}/s/{slide}": name for slide, name in BELOW.items()}
    assert found(f"{root}/s/") == found(f"{root}/s") == found(located(f"{root}/s")) == expected
    assert list(found(f"{root}/s")) == sorted(expected, key=lambda url: Path(url).parts)
    assert all(job.facts.size == 2 and job.facts.version for job in find_slides([f"{root}/s"]))
    assert found(root) == {f"{root}/s/{slide}": f"s/{name}" for slide, name in BELOW.items()} | {
        f"{root}/other/d.svs": "other/d"
    }


def test_a_pattern_keeps_the_path_behind_its_fixed_part(root):
    assert found(f"{root}/s/*.SVS") == {f"{root}/s/b.SVS": "b"}
    assert found(f"{root}/s/su*") == {f"{root}/s/sub/b.svs": "sub/b"}
    assert found(f"{root}/*/d.svs") == {f"{root}/other/d.svs": "other/d"}
    assert found(f"{root}/**/b.svs") == {f"{root}/s/sub/b.svs": "s/sub/b"}


def test_a_slide_is_taken_as_it_is_and_nothing_is_asked(root, monkeypatch):
    monkeypatch.setattr(store, "asked", lambda *_: pytest.fail("asked"))
    assert found(f"{root}/s/gone.svs") == {f"{root}/s/gone.svs": "gone"}
    url = "https://host/x/a%20b.svs?X-Amz-Signature=1"
    assert found(url) == {url: "a b"}
    assert found("https://host/download?id=7") == {"https://host/download?id=7": "download"}


def test_a_file_whose_name_looks_like_a_pattern_or_like_no_slide_is_a_file(root):
    assert found(f"{root}/s/x/y/c d#1?%41.tiff") == {f"{root}/s/x/y/c d#1?%41.tiff": "c d#1?%41"}
    assert found(f"{root}/s/notes.txt") == {f"{root}/s/notes.txt": "notes"}


def test_each_slide_is_found_once(root):
    assert found(f"{root}/s/sub/b.svs", f"{root}/s/sub") == {f"{root}/s/sub/b.svs": "b"}


@pytest.mark.parametrize(
    ("url", "words"),
    [("none/", "there is nothing of that name"), ("s/*.vms", "no slides match"), ("s/done/", "no slides in")],
)
def test_what_has_no_slides_is_one_line(root, url, words):
    with pytest.raises(SlideError, match=words) as caught:
        find_slides([f"{root}/{url}"])
    assert str(caught.value).startswith(f"{root}/{url.rstrip('/')}")


def test_a_store_that_refuses_is_one_line(bucket):
    with pytest.raises(SlideError, match=r"^s3://no-such-bucket/s: slides cannot be listed \("):
        find_slides(["s3://no-such-bucket/s/"])


def test_the_files_of_a_dicom_slide_are_one(bucket, monkeypatch):
    for name, series in (("a.dcm", "1"), ("b.dcm", "1"), ("c.dicom", "2"), ("x/a.dcm", "1")):
        located(f"{bucket}/s/{name}").write_bytes(of_series(series))
    assert list(found(f"{bucket}/s/").values()) == ["a", "c", "x/a"]


def test_a_folder_of_a_web_server_is_one_whose_page_names_slides(web):
    for name in ("a%20b.svs", "c%23%3F.svs", "notes.txt", "x/d.svs"):
        web.files[f"/s/{name}"] = b"pixels"
    assert found(f"{web.url}/s/") == {
        f"{web.url}/s/a%20b.svs": "a b",
        f"{web.url}/s/c%23%3F.svs": "c#?",
        f"{web.url}/s/x/d.svs": "x/d",
    }


def test_a_list_names_urls_and_what_lies_beside_it(root, tmp_path):
    rows = f"path,mpp,annotations\n{root}/s/b.SVS,0.5,{root}/b.xml\na.svs,,\n"
    (tmp_path / "list.csv").write_text(rows)
    jobs = find_slides([tmp_path / "list.csv"])
    assert [(job.shown, job.name.name, job.mpp) for job in jobs] == [
        (f"{root}/s/b.SVS", "b", 0.5),
        (str(tmp_path / "a.svs"), "a", None),
    ]
    assert str(jobs[0].annotations) == f"{root}/b.xml"


def test_a_list_at_a_url_names_what_lies_beside_it(root, tmp_path):
    located(f"{root}/s/list.csv").write_bytes(f"path\nx/e.svs\n{root}/other/d.svs\n/local/f.svs\n".encode())
    assert found(f"{root}/s/list.csv") == {
        f"{root}/s/x/e.svs": "x/e",
        f"{root}/other/d.svs": "d",
        "/local/f.svs": "f",
    }
    assert len(find_paths([f"{root}/s/list.csv"])) == 3


def test_of_many_slides_of_a_list_the_folder_is_listed_once(bucket, tmp_path, monkeypatch):
    names = [f"{bucket}/s/{i}.svs" for i in range(12)]
    for name in names[:-1]:
        located(name).write_bytes(b"pixels")
    (tmp_path / "list.csv").write_text("\n".join(["path", *names, f"{bucket}/other/a.svs"]))
    asked, questions = listings.asked, []
    monkeypatch.setattr(listings, "asked", lambda *what, **how: questions.append(what) or asked(*what, **how))
    jobs = find_slides([tmp_path / "list.csv"])
    assert [job.facts and job.facts.size for job in jobs] == [6] * 11 + [None] * 2
    assert len(questions) == 1


def test_a_list_that_cannot_be_read_is_one_line(bucket, monkeypatch):
    monkeypatch.setattr(lists, "tried", lambda ask: ask())
    with pytest.raises(SlideError, match=r"none.csv: the list cannot be read \(there is nothing"):
        find_slides([f"{bucket}/none.csv"])
