from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from wsi_saliency import batch
from wsi_saliency.batch import Job, explain_slides, find_slides
from wsi_saliency.errors import ModelError, SlideError
from wsi_saliency.pipeline import PARTIAL
from wsi_saliency.settings import RunSettings


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


# ------------------------------------------------------------------------------------------- searching


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


def test_slides_that_differ_in_suffix_only_keep_it(tree):
    tree("s/a.svs", "s/a.tif", "s/b.svs", "s/x/a.svs")
    assert found("s") == {"s/a.svs": "a_svs", "s/a.tif": "a_tif", "s/b.svs": "b", "s/x/a.svs": "x/a"}


def test_results_never_share_a_folder(tree):
    tree("p/slide.svs", "q/slide.svs")
    with pytest.raises(SlideError, match=r"p/slide.svs and q/slide.svs would both be written to slide_svs; "):
        find_slides(["p/slide.svs", "q/slide.svs"])
    assert set(found(".").values()) == {"p/slide", "q/slide"}


def test_our_own_outputs_are_no_slides(tree):
    tree(
        "s/a.svs",
        "s/a/saliency.ome.tif",
        "s/a/run.json",
        f"s/b{PARTIAL}/new/saliency.ome.tif",
        "s/theirs/saliency.ome.tif",
        "s/c.ome.tif",
    )
    assert set(found("s")) == {"s/a.svs", "s/theirs/saliency.ome.tif", "s/c.ome.tif"}
    assert set(found("s/*/*.tif")) == {"s/theirs/saliency.ome.tif"}


def test_a_folder_of_slides_may_have_any_name_itself(tree):
    tree(f"s{PARTIAL}/a.svs")
    assert set(found(f"s{PARTIAL}")) == {f"s{PARTIAL}/a.svs"}


def test_one_dicom_file_stands_for_all_in_its_folder(tree):
    tree("s/one/1.dcm", "s/one/2.dcm", "s/two/3.dcm", "s/two/a.svs", "s/two/0.DICOM")
    assert found("s") == {"s/one/1.dcm": "one/1", "s/two/0.DICOM": "two/0", "s/two/a.svs": "two/a"}
    assert set(found("s/one/*")) == {"s/one/1.dcm"}


@pytest.mark.parametrize(
    ("text", "message"), [("empty", "empty: no slides in this folder"), ("*.svs", "no slides match this")]
)
def test_nothing_found_is_an_error(tree, text, message):
    tree("empty/notes.txt")
    with pytest.raises(SlideError, match=message):
        find_slides([text])


# ---------------------------------------------------------------------------------------------- running


@pytest.fixture
def ran(tree, monkeypatch):
    """Run three slides of which the second fails as told; returns outcomes and the calls."""
    tree("a.svs", "b.svs", "c.svs")
    calls = []

    def run(error, names=("a", "b", "c")):
        def explain_slide(slide, folder, settings, **how):
            calls.append((slide, folder, how["explainer"]))
            if slide.stem == "b":
                raise error
            return SimpleNamespace(folder=folder)

        monkeypatch.setattr(batch, "load_explainer", lambda settings: calls.append("loaded") or "explainer")
        monkeypatch.setattr(batch, "explain_slide", explain_slide)
        jobs = [Job(Path(f"{name}.svs"), Path(name)) for name in names]
        return list(explain_slides(jobs, Path("out"), RunSettings())), calls

    return run


def test_a_failing_slide_does_not_stop_the_others(ran):
    outcomes, calls = ran(SlideError("b.svs: bad tile"))
    assert [job.slide.stem for job, _ in outcomes] == ["a", "b", "c"]
    assert [getattr(result, "folder", result) for _, result in outcomes] == [
        Path("out/a"),
        "b.svs: bad tile",
        Path("out/c"),
    ]
    assert calls[0] == "loaded"
    assert [call[2] for call in calls[1:]] == ["explainer"] * 3


def test_an_unexpected_error_is_named_with_its_slide_in_one_line(ran):
    outcomes, _ = ran(IndexError("out of\nrange"))
    assert outcomes[1][1] == "b.svs: unexpected IndexError: out of range (run with -v for the traceback)"
    assert len(outcomes) == 3


def test_interruption_is_no_failure_of_a_slide(ran):
    with pytest.raises(KeyboardInterrupt):
        ran(KeyboardInterrupt())


def test_a_missing_file_is_told_before_a_classifier_is_loaded(ran):
    outcomes, calls = ran(None, names=["none"])
    assert outcomes[0][1] == "none.svs: no such file"
    assert calls == []


def test_without_a_classifier_nothing_is_tried(tree, monkeypatch):
    tree("a.svs")

    def load_explainer(settings):
        raise ModelError("no weights")

    monkeypatch.setattr(batch, "load_explainer", load_explainer)
    with pytest.raises(ModelError, match="no weights"):
        list(explain_slides(find_slides(["a.svs"]), Path("out"), RunSettings()))
