"""Lists of slides: what a row may say, and how what is wrong is named."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from wsi_saliency.errors import SlideError
from wsi_saliency.settings import RunSettings
from wsi_saliency.workflows.discovery import find_paths, find_slides
from wsi_saliency.workflows.jobs import Job
from wsi_saliency.workflows.lists import Listed, read_list


@pytest.fixture
def listed(tmp_path):
    """Write a list, and return its path."""

    def write(text, encoding="utf-8"):
        (tmp_path / "in").mkdir(exist_ok=True)
        path = tmp_path / "in" / "list.csv"
        path.write_bytes(text.encode(encoding))
        return path

    return write


def test_rows_say_what_differs(listed, tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.xml").touch()
    path = listed(
        "annotations,path,target,mpp\n"
        'a.xml,sub/a.svs,"tumour, stroma",0.25\n'
        f",{tmp_path}/b.svs,,\n"
        ",../c.svs,all, 1e-1 \n",
        "utf-8-sig",
    )
    below = tmp_path / "in"
    assert read_list(path) == [
        Listed(below / "sub/a.svs", 0.25, ("tumour", "stroma"), below / "a.xml"),
        Listed(tmp_path / "b.svs"),
        Listed(below / "../c.svs", 0.1, ("all",)),
    ]
    assert find_slides([path]) == [
        Job(below / "sub/a.svs", Path("sub/a"), 0.25, ("tumour", "stroma"), below / "a.xml"),
        Job(tmp_path / "b.svs", Path("b")),
        Job(below / "../c.svs", Path("c"), 0.1, ("all",)),
    ]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            "path,mmp\na.svs,1\n",
            "unknown column 'mmp'; a list has the columns path, mpp, target, annotations",
        ),
        ("path;mpp\na.svs;1\n", "unknown column 'path;mpp'; a list has"),
        ("mpp\n1\n", "no column 'path', or one twice"),
        ("path,path\na.svs,b.svs\n", "no column 'path', or one twice"),
        ("", "no column 'path'"),
        ("path\n", "lists no slides"),
        ("path,mpp\na.svs,0.5\nb.svs,0\n", "line 3: mpp '0' is not a number above 0"),
        ('path,mpp\na.svs,"0,5"\n', "line 2: mpp '0,5' is not a number above 0"),
        ("path,mpp\na.svs,nan\n", "line 2: mpp 'nan' is not a number above 0"),
        ("path,mpp\na.svs\n", "line 2: has more or fewer values than there are columns"),
        ("path,mpp\na.svs,1,2\n", "line 2: has more or fewer values than there are columns"),
        ("path,mpp\n,1\n", "line 2: names no slide"),
        ("path,annotations\na.svs,none.xml\n", "line 2: there are no annotations"),
        ("path\na.svs\nb.svs\nsub/../a.svs\n", "line 4: names the slide of line 2 again"),
        ('path\n"a.svs\n', "cannot be read as a list of slides"),
    ],
)
def test_what_is_wrong_is_named(listed, text, words):
    with pytest.raises(SlideError) as caught:
        read_list(listed(text))
    assert str(caught.value).startswith(f"{listed(text)}: ")
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_list_that_is_no_text_is_one_line(listed):
    with pytest.raises(SlideError, match="cannot be read as a list of slides"):
        read_list(listed("path\nä.svs\n", "latin-1"))


def test_what_a_list_says_counts_also_for_a_slide_that_is_named_besides(listed, tmp_path):
    path = listed("path,mpp\na.svs,0.25\n")
    (tmp_path / "in" / "a.svs").touch()
    for inputs in ([tmp_path / "in", path], [path, tmp_path / "in"]):
        (job,) = find_slides(inputs)
        assert job.mpp == 0.25


def test_work_without_settings_of_its_slides_refuses_them(listed, tmp_path):
    assert find_paths([listed("path\na.svs\n")]) == [tmp_path / "in" / "a.svs"]
    with pytest.raises(SlideError, match=r"a\.svs: the list says more than its path, which only run uses"):
        find_paths([listed("path,mpp\na.svs,1\n")])


def test_settings_of_a_slide_stand_in_place_of_those_of_all():
    common = RunSettings(mpp=0.5, targets=("tumour",), overlap=0.25)
    assert Job(Path("a"), Path("a")).settings(common) == common
    own = Job(Path("a"), Path("a"), 0.25, ("normal",)).settings(common)
    assert own == replace(common, mpp=0.25, targets=("normal",))
