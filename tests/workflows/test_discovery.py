from __future__ import annotations

import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.helpers.dicom import of_series
from tests.helpers.paths import REAL_SLIDES, ROOT
from wsi_saliency.errors import SlideError
from wsi_saliency.geometry import Size
from wsi_saliency.slides.opening import open_slide
from wsi_saliency.slides.readers.dicom import series_of
from wsi_saliency.workflows.discovery import Job, chosen, find_slides

GROWING = ".a.0123abcd.growing"  # what a run that was killed leaves beside the folder `a`


@pytest.fixture
def tree(tmp_path, monkeypatch):
    """Make files from their relative paths; the working folder is theirs."""
    monkeypatch.chdir(tmp_path)

    def make(*names):
        for name in names:
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()

    return make


def found(*inputs):
    return {str(job.slide): str(job.name) for job in find_slides(inputs)}


def test_a_file_is_taken_as_it_is_even_if_it_is_not_there():
    assert found("a/b/slide.svs") == {"a/b/slide.svs": "slide"}
    assert found("slide.of.many.dots.svs") == {"slide.of.many.dots.svs": "slide.of.many.dots"}


def test_a_folder_is_searched_below_and_relative_paths_are_kept(tree):
    tree("s/b.SVS", "s/a.ndpi", "s/x/y/c.tiff", "s/notes.txt", "s/.hidden.svs", "s/a.geojson", "other/d.svs")
    assert found("s") == {"s/a.ndpi": "a", "s/b.SVS": "b", "s/x/y/c.tiff": "x/y/c"}
    assert list(found("s")) == sorted(found("s"))


def test_a_pattern_keeps_the_path_behind_its_fixed_part(tree):
    tree("s/p1/slide.svs", "s/p2/slide.svs", "s/p2/other.tif")
    assert found("s/*/slide.svs") == {"s/p1/slide.svs": "p1/slide", "s/p2/slide.svs": "p2/slide"}
    assert found("s/**/*.tif") == {"s/p2/other.tif": "p2/other"}
    assert found("s/p*") == found("s")


def test_a_file_whose_name_looks_like_a_pattern_is_a_file(tree):
    tree("slide[1].svs", "slide1.svs")
    assert found("slide[1].svs") == {"slide[1].svs": "slide[1]"}


def test_each_slide_is_found_once(tree):
    tree("s/a.svs", "s/b.svs")
    assert found("s/b.svs", "s", "./s/a.svs") == {"s/b.svs": "b", "s/a.svs": "a"}
    assert found("s", "?/*.svs", "s/b.svs") == {"s/a.svs": "a", "s/b.svs": "b"}


def test_a_link_that_leads_to_no_file_is_a_slide_that_will_fail(tree, tmp_path):
    """An archive that is not there must not make its slides go unnoticed."""
    tree("s/a.svs")
    for name, target in (("b.svs", "gone/b.svs"), ("c.svs", "c.svs"), ("folder.svs", "."), ("notes", "gone")):
        (tmp_path / "s" / name).symlink_to(target)
    slides = {f"s/{name}.svs": name for name in "abc"}
    assert found("s") == found("s/*.svs") == found(*slides) == slides


def test_slides_that_differ_in_suffix_only_keep_it(tree):
    tree("s/a.svs", "s/a.tif", "s/b.svs", "s/x/a.svs")
    assert found("s") == {"s/a.svs": "a_svs", "s/a.tif": "a_tif", "s/b.svs": "b", "s/x/a.svs": "x/a"}


def test_results_never_share_a_folder(tree):
    tree("p/slide.svs", "q/slide.svs")
    with pytest.raises(SlideError, match=r"p/slide.svs and q/slide.svs would both be written to slide_svs; "):
        find_slides(["p/slide.svs", "q/slide.svs"])
    assert set(found(".").values()) == {"p/slide", "q/slide"}


def test_no_result_lies_in_that_of_another_slide(tree):
    tree("s/a.svs", "s/a/b.svs", "s/a/b/c.svs")
    assert found("s") == {"s/a.svs": "a_svs", "s/a/b.svs": "a/b_svs", "s/a/b/c.svs": "a/b/c"}
    tree("s/a_svs/d.svs")
    with pytest.raises(SlideError, match=r"a\.svs would both be written to a_svs; "):
        find_slides(["s"])


def test_a_slide_whose_name_is_mostly_dots_keeps_its_suffix(tree):
    assert found("..svs", "....svs", "a/..tif") == {
        "..svs": "__svs",
        "....svs": "____svs",
        "a/..tif": "__tif",
    }


def test_a_pattern_cannot_climb_out_of_its_folder(tree):
    tree("in/a/x.svs", "b/y.svs")
    for pattern in ("in/*/../../*/*.svs", "in/*/..", "*/../b/*.svs"):
        with pytest.raises(SlideError, match=r"'\.\.' cannot stand behind a wildcard"):
            find_slides([pattern])
    assert found("in/../*/y.svs") == {"in/../b/y.svs": "b/y"}


@pytest.mark.parametrize("text", ["", " "])
def test_an_empty_name_is_no_folder(tree, text):
    tree("a.svs")
    with pytest.raises(SlideError, match="names no slide"):
        find_slides([text])
    assert set(found(".")) == {"a.svs"}


PARTS = [
    "..",
    ".",
    "*",
    "**",
    "?",
    "[a]",
    "a",
    "a.svs",
    "a.tif",
    "..svs",
    "....svs",
    "*.svs",
    "~",
    "\n\x1b.svs",
    " ",
]
HOSTILE = st.lists(st.sampled_from(PARTS), min_size=1, max_size=5).map("/".join)


@given(st.lists(HOSTILE, min_size=1, max_size=4))
@example(["a/a.svs", "*/../../*.svs"])
@example(["a.svs", "a/a.svs"])
@example(["a/....svs"])
@example([".", "**"])
@settings(max_examples=50)
def test_results_never_lie_outside_of_the_output_folder(names):
    """Nor at it, nor in that of another slide; whatever files there are, and whatever is asked for."""
    with TemporaryDirectory() as folder:
        root = Path(folder, "1", "2", "3", "4", "in")
        for name in (*names, *(f"{'../' * up}x.svs" for up in range(5))):
            path = Path(os.path.normpath(root / name))
            if Path(folder) in path.parents and not path.is_dir():
                with suppress(OSError):  # a file is in the way
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.touch()
        for wanted in ([root], *([f"{root}/{name}"] for name in names)):
            with suppress(SlideError):
                results = [Path(os.path.normpath(f"/out/{job.name}")) for job in find_slides(wanted)]
                assert all(Path("/out") in result.parents for result in results)
                assert not any(one in other.parents for one in results for other in results)


def test_our_own_outputs_are_no_slides(tree):
    tree(
        "s/a.svs",
        "s/a/saliency.ome.tif",
        "s/a/run.json",
        "s/.a.lock",
        f"s/{GROWING}/new/saliency.ome.tif",
        f"s/{GROWING}/old/saliency.ome.tif",
        "s/theirs/saliency.ome.tif",
        "s/b.partial/c.svs",
        "s/c.ome.tif",
    )
    theirs = {"s/b.partial/c.svs", "s/theirs/saliency.ome.tif"}
    assert set(found("s")) == {"s/a.svs", "s/c.ome.tif", *theirs}
    assert set(found("s/*/*.*")) == {*theirs, "s/a/run.json"} - {"s/a/saliency.ome.tif"}
    with pytest.raises(SlideError, match="no slides match"):
        found("s/.*/*/*.tif")


def test_a_folder_of_slides_may_have_any_name_itself(tree):
    tree(f"{GROWING}/a.svs")
    assert set(found(GROWING)) == {f"{GROWING}/a.svs"}


def test_one_dicom_file_stands_for_all_in_its_folder(tree):
    tree("s/one/1.dcm", "s/one/2.dcm", "s/two/3.dcm", "s/two/a.svs", "s/two/0.DICOM")
    assert found("s") == {"s/one/1.dcm": "one/1", "s/two/0.DICOM": "two/0", "s/two/a.svs": "two/a"}
    assert set(found("s/one/*")) == {"s/one/1.dcm"}


def test_two_dicom_slides_in_one_folder_are_two(tree):
    tree("s/1.dcm", "s/2.dcm", "s/3.dcm", "s/4.dcm", "s/5.dcm", "t/1.dcm")
    for name, series in (("s/1", "1.2"), ("s/2", "1.3"), ("s/3", "1.2"), ("s/4", "1.3"), ("t/1", "1.2")):
        Path(f"{name}.dcm").write_bytes(of_series(series))
    # The fifth does not say which slide it is of, and is tried.
    assert found("s") == {"s/1.dcm": "1", "s/2.dcm": "2", "s/5.dcm": "5"}
    assert set(found("?/*.dcm")) == {"s/1.dcm", "s/2.dcm", "s/5.dcm", "t/1.dcm"}


@pytest.mark.skipif(not (REAL_SLIDES / "jpeg.dicom").exists(), reason="no real slides")
def test_each_dicom_slide_that_is_found_can_be_opened(tree, tmp_path):
    """OpenSlide takes all files of a series in a folder together, and no others."""
    content = (REAL_SLIDES / "jpeg.dicom").read_bytes()
    for name, end in (("a.dcm", b""), ("b.dcm", b"1")):
        series = series_of(REAL_SLIDES / "jpeg.dicom").encode()
        (tmp_path / name).write_bytes(content.replace(series, series[: len(series) - len(end)] + end))
    assert series_of(tmp_path / "a.dcm") != series_of(tmp_path / "b.dcm")
    assert len(found(".")) == 2
    for path in found("."):
        with open_slide(path) as slide:
            assert slide.size == Size(957, 715)


@pytest.mark.parametrize(
    ("text", "message"), [("empty", "empty: no slides in this folder"), ("*.svs", "no slides match this")]
)
def test_nothing_found_is_an_error(tree, text, message):
    tree("empty/notes.txt")
    with pytest.raises(SlideError, match=message):
        find_slides([text])


def test_slides_are_found_without_torch():
    code = "import sys, wsi_saliency.workflows.discovery as _; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_each_slide_is_in_one_shard_and_stays_in_it():
    jobs = [Job(Path(f"{i}.svs"), Path(f"{i}")) for i in range(200)]
    shards = [chosen(jobs, shard=(i, 3)) for i in (1, 2, 3)]
    assert sorted(job.name for shard in shards for job in shard) == sorted(job.name for job in jobs)
    assert min(map(len, shards)) > 40
    assert [chosen(jobs[::2], shard=(i, 3)) for i in (1, 2, 3)] == [
        [job for job in shard if job in jobs[::2]] for shard in shards
    ]
    assert [job.name for job in chosen(jobs[:4], shard=(2, 3))] == [
        Path("1"),
        Path("2"),
        Path("3"),
    ]  # on every machine


def test_a_limit_takes_the_first_of_the_shard():
    jobs = [Job(Path(f"{i}.svs"), Path(f"{i}")) for i in range(20)]
    assert chosen(jobs, 3) == jobs[:3]
    assert chosen(jobs, 3, (2, 2)) == chosen(jobs, None, (2, 2))[:3]
    assert chosen(jobs, 100) == chosen(jobs) == jobs
