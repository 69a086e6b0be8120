"""The evaluation from slides to the report: a hand-set classifier on made slides, the demo on the sample."""

from __future__ import annotations

import json
import math
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.helpers.nets import narrow_net, spot_classifier, untrained
from tests.helpers.paths import SAMPLE_DATA
from tests.helpers.runs import without_pictures
from tests.helpers.slides import section, write_svs
from wsi_saliency import EvaluationSettings, evaluate_slide, evaluate_slides
from wsi_saliency.errors import ModelError, OutputError, SettingsError, SlideError
from wsi_saliency.evaluation.measured import MapKind
from wsi_saliency.heatmap.result import Result
from wsi_saliency.mapspec import MapSpec
from wsi_saliency.models import loading
from wsi_saliency.report import outputs
from wsi_saliency.saliency.smoothing import SMOOTHING
from wsi_saliency.settings import METHODS
from wsi_saliency.workflows import evaluate, localised
from wsi_saliency.workflows.evaluate import distinct_names
from wsi_saliency.workflows.evaluated import EvaluatedClassifier

SAMPLE = SAMPLE_DATA
W, H, BOX = 384, 320, (48, 48, 256, 224)
COMPARED = tuple(m for m in METHODS if SMOOTHING[m].shifts == 1)  # where hooks reach
OWN = tuple(m for m in COMPARED if not SMOOTHING[m].imitates)  # methods that need no surrogate
PAIR = ("none", "backward-hook")
HEAD = 0.02  # keeps probabilities away from 1


@pytest.fixture
def spots(monkeypatch):
    """Replace every classifier by the hand-set one, and pictures, which take longest, by nothing."""
    classifier = spot_classifier(64)
    classifier.module.head.weight.mul_(HEAD)
    monkeypatch.setattr(loading, "_load", lambda uri, weights: classifier)
    without_pictures(monkeypatch)
    monkeypatch.setattr(outputs, "plots", lambda evaluation: [])
    return classifier


@pytest.fixture(scope="module")
def slide(tmp_path_factory):
    return write_svs(tmp_path_factory.mktemp("slides") / "slide.svs", [section(W, H, BOX)])


@pytest.fixture
def out(tmp_path):
    return tmp_path / "new" / "evaluation"


def settings_of(**how):
    few = {"patches": 6, "step": 64 * 32, "batch": 4, "workers": 1, "device": "cpu", "stability_mpx": 0}
    what = {"model": "spots", "methods": PAIR, "attributions": ("gradient",), "layers": ("8",)}
    return EvaluationSettings(**(what | few | how))


def drawn(path, *boxes, name="Tumor"):
    """Annotations, boxes x, y, w, h, as QuPath writes them."""
    rings = [[[x, y], [x + w, y], [x + w, y + h], [x, y + h], [x, y]] for x, y, w, h in boxes]
    features = [
        {
            "type": "Feature",
            "geometry": {"type": "Polygon", "coordinates": [ring]},
            "properties": {"objectType": "annotation", "classification": {"name": name}},
        }
        for ring in rings
    ]
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    return path


@pytest.fixture
def annotations(tmp_path):
    return drawn(tmp_path / "slide.geojson", (48, 48, 128, 128))


def strict(path):
    """Read JSON that has neither NaN nor infinities."""

    def refuse(constant):
        raise AssertionError(constant)

    return json.loads(path.read_text(), parse_constant=refuse)


def names_in(folder):
    return sorted(path.name for path in folder.iterdir())


# ---------------------------------------------------------------------------------------- what is found


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """Evaluate the demo classifier on the sample slide, its maps without overlap, which takes a quarter."""
    folder = tmp_path_factory.mktemp("demo") / "evaluation"
    annotated = {"annotations": SAMPLE / "tumour_nests.geojson", "annotation_classes": ("Tumor",)}
    settings = settings_of(model="demo", patches=7, batch=None, step=224 * 56, **annotated)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(localised, "RunSettings", partial(localised.RunSettings, overlap=0.0))
        without_pictures(patch)
        evaluation = evaluate_slide(SAMPLE / "tumour_nests.svs", folder, settings)
    return evaluation, folder, strict(folder / "metrics.json")


def test_the_demo_finds_the_nests_by_its_probabilities_and_by_every_method(demo):
    evaluation, _, metrics = demo
    kinds = [MapKind(method, "gradient", "layer2", 8) for method in PAIR]
    assert [row.kind for row in evaluation.localised] == [None, *kinds]
    assert all(row.slide == "tumour_nests.svs" for row in evaluation.localised)
    assert all(row.auroc > 0.8 for row in evaluation.localised)
    assert all(0.1 < row.annotated < 0.4 for row in evaluation.localised)
    assert [row["kind"] and row["kind"]["method"] for row in metrics["localised"]] == [None, *PAIR]


def test_everything_is_written_and_nothing_else(demo):
    _, folder, metrics = demo
    pictures = ["choice.png", "curves.png", "examples.png", "scores.png", "total-variation.png"]
    files = ["curves.npz", "index.html", "maps", "metrics.csv", "metrics.json", *pictures]
    assert names_in(folder) == sorted(files)
    maps = Result.read(folder / "maps" / "tumour_nests").maps
    assert [made.spec for made in maps] == [MapSpec("layer2", method, "gradient") for method in PAIR]
    assert metrics.keys() == {
        *("schema", "findings", "combinations", "prediction_difference", "phase", "stability", "sanity"),
        *("localised", "facts", "patches"),
    }
    assert len(metrics["combinations"]) == 2 + 3
    assert metrics["sanity"] == []
    assert len((folder / "metrics.csv").read_text().splitlines()) == 1 + 5
    curves = np.load(folder / "curves.npz")
    assert curves["insertion_curves"].shape == (5, 7, 4 + 1)


def test_facts_say_what_was_evaluated(demo):
    facts = demo[2]["facts"]
    assert facts["model"]["uri"] == "demo"
    assert facts["model"]["classes"] == ["tumour"]
    assert (facts["target"], facts["patches"], facts["pixels_per_step"]) == ("tumour", 7, 224 * 56)
    assert facts["slides"] == ["tumour_nests.svs"]
    assert facts["layers"] == {"layer2": 8}
    assert facts["layer_of_slide_maps"] == "layer2"
    assert facts["total_stride"] == 32
    assert facts["settings"]["annotations"] == str(SAMPLE / "tumour_nests.geojson")
    assert facts["seconds"] > 0
    assert {"python", "wsi-saliency", "torch"} <= facts["versions"].keys()


def test_patches_lie_on_the_slide_and_have_probabilities(demo):
    evaluation, _, metrics = demo
    assert metrics["patches"] == evaluation.patch_rows
    for row in metrics["patches"]:
        assert row.keys() == {"slide", "x", "y", "w", "h", "probability"}
        assert (row["w"], row["h"]) == (224, 224)
        assert 0 <= row["x"] <= 4608 - 224
        assert 0 <= row["y"] <= 4096 - 224
        assert 0 <= row["probability"] <= 1
    whole = [row["probability"] for row in metrics["patches"]]
    np.testing.assert_allclose(evaluation.scored[0].insertion_curves[:, -1], whole, atol=1e-12)


def test_patches_are_moved_by_less_than_the_total_stride(demo):
    evaluation, _, metrics = demo
    assert len(evaluation.phase) == len(metrics["phase"]) == 2 + 1
    for found, written in zip(evaluation.phase, metrics["phase"], strict=True):
        assert written["label"] == found.kind.label
        assert set(np.unique(found.moves)) <= {0, 8, 16, 24}
        known = found.correlation[~np.isnan(found.correlation)]
        assert known.size  # some patches' maps are 0 all over
        assert (np.abs(known) <= 1).all()
        assert sum(move["n"] for move in written["moves"]) == known.size
        combination = next(row for row in metrics["combinations"] if row["label"] == found.kind.label)
        assert combination["phase_stability"]["mean"] == pytest.approx(np.nanmean(found.by_patch))


def test_phase_stability_can_be_left_out(spots, slide, out):
    found = evaluate_slide(slide, out, settings_of(phase_moves=0))
    assert found.phase == []
    assert all(np.isnan(scored.phase_stability).all() for scored in found.scored)
    assert strict(out / "metrics.json")["combinations"][0]["phase_stability"]["n"] == 0


def test_the_patches_that_the_classifier_is_surest_of_are_shown(demo):
    evaluation, *_ = demo
    p = sorted((row["probability"] for row in evaluation.patch_rows), reverse=True)
    assert [example.probability for example in evaluation.examples] == p[:4]
    for example in evaluation.examples:
        assert example.patch.shape == (224, 224, 3)
        assert {kind.method: maps.shape for kind, maps in example.maps.items()} == dict.fromkeys(
            PAIR, (28, 28)
        )


@pytest.fixture
def narrow(monkeypatch, spots, tmp_path):
    """A classifier of random weights with a surrogate, in its file."""
    module = narrow_net(torch.float32).eval().requires_grad_(False)
    module.fc.bias.zero_()
    monkeypatch.setattr(loading, "_load", lambda uri, weights: replace(spots, module=module))
    untrained(module).save(tmp_path / "surrogate.safetensors")
    return tmp_path / "surrogate.safetensors"


class Bar:
    """Counts what a bar is told."""

    made: list[Bar]

    def __init__(self, total, disable, **how):
        self.total, self.disable, self.n = total, disable, 0
        self.made.append(self)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass

    def update(self, n):
        self.n += n


def test_all_methods_with_everything_on(narrow, slide, out, annotations, monkeypatch):
    monkeypatch.setattr(evaluate, "tqdm", Bar)
    monkeypatch.setattr(Bar, "made", [], raising=False)
    how = {"attributions": ("gradient", "gradcam"), "layers": ("8",), "annotations": annotations}
    settings = settings_of(methods=(), surrogate=narrow, sanity=True, stability_mpx=0.05, batch=32, **how)
    found = evaluate_slides([slide], out, settings)
    (bar,) = Bar.made
    assert bar.n == bar.total > 1000
    assert bar.disable is True

    attributions = ("gradient", "gradcam")
    maps = [MapKind(m, a, "layer2", 8) for a in attributions for m in COMPARED]
    assert len(found.scored) == len(maps) + (len(maps) - 2) + 2
    assert list(found.prediction_difference) == list(COMPARED)
    assert [row.kind for row in found.localised] == [None, *maps]
    assert [(r.method, r.attribution, r.layer, r.overlap) for r in found.stability] == [
        (m, a, "layer2", overlap) for overlap in (0.5, 0.75) for a in attributions for m in COMPARED
    ]
    assert all(-1 <= row.correlation <= 1 for row in found.stability)
    stages = [None, "head", "layer4", "layer3", "layer2", "layer1", "act1"]
    assert [(s.method, s.attribution, s.layer, s.module) for s in found.sanity] == [
        (m, a, "layer2", stage) for a in attributions for m in OWN for stage in stages
    ]
    by_kind = {scored.kind: scored for scored in found.scored}
    for stage in found.sanity[::7]:
        intact = by_kind[MapKind(stage.method, stage.attribution, stage.layer, 8)]
        assert (stage.spearman == 1).all()
        np.testing.assert_allclose(stage.insertion, intact.insertion, atol=1e-3)
        np.testing.assert_allclose(stage.deletion, intact.deletion, atol=1e-3)
    strict(out / "metrics.json")


@pytest.mark.usefixtures("spots")
def test_sanity_looks_at_some_of_many_patches(slide, out, monkeypatch):
    seeds, cascade = [], evaluate.cascade

    def watched(*args, seed):
        seeds.append(seed)
        return cascade(*args, seed=seed)

    monkeypatch.setattr(evaluate, "SANITY_PATCHES", 3)
    monkeypatch.setattr(evaluate, "cascade", watched)
    found = evaluate_slides([slide], out, settings_of(patches=7, sanity=True, methods=("none",), seed=5))
    assert seeds == [5]
    assert {len(stage.insertion) for stage in found.sanity} == {3}
    np.testing.assert_allclose(found.sanity[0].insertion, found.scored[0].insertion[::3], atol=1e-6)


@pytest.mark.usefixtures("spots")
def test_without_a_surrogate_the_other_methods_are_compared(slide, out):
    found = evaluate_slides([slide], out, settings_of(methods=(), attributions=(), layers=("8", "16")))
    kinds = [scored.kind for scored in found.scored if scored.kind.control is None]
    assert kinds == [
        MapKind(m, a, f"stage{stage}", 2**stage)
        for a in ("gradient", "deeplift")
        for stage in (3, 4)
        for m in OWN
    ]
    with pytest.raises(ModelError, match=r"no surrogate comes with this model.*--surrogate FILE"):
        evaluate_slides([slide], out, settings_of(methods=("surrogate",)), overwrite=True)


@pytest.mark.usefixtures("spots")
def test_the_seed_decides(slide, tmp_path):
    def run(name, **how):
        evaluate_slides([slide], tmp_path / name, settings_of(sanity=True, stability_mpx=0.05, **how))
        metrics = strict(tmp_path / name / "metrics.json")
        for time in ("started", "seconds"):
            del metrics["facts"][time]
        return metrics, dict(np.load(tmp_path / name / "curves.npz"))

    (one, curves), (again, same), (other, _) = run("a"), run("b"), run("c", seed=1)
    assert one == again
    for name, values in curves.items():
        np.testing.assert_array_equal(values, same[name])
    assert one["patches"] != other["patches"]
    assert [s for s in one["sanity"] if s["module"]] != [s for s in other["sanity"] if s["module"]]


def threshold_at_the_median(classifier, slide, out):
    """Shift the classifier so that about half of the patches are positive."""
    found = evaluate_slides([slide], out, settings_of(patches=40, methods=("none",)))
    p = np.array([row["probability"] for row in found.patch_rows])
    with torch.no_grad():
        classifier.module.head.bias[0] += float(np.median(np.log(p / (1 - p))))


def test_predicted_positive_keeps_patches_over_one_half_only(spots, slide, tmp_path):
    threshold_at_the_median(spots, slide, tmp_path / "before")
    probabilities = [
        [row["probability"] for row in evaluate_slides([slide], tmp_path / name, s).patch_rows]
        for name, s in (
            ("all", settings_of(patches=20)),
            ("positive", settings_of(patches=20, predicted_positive=True)),
        )
    ]
    assert 2 < sum(p > 0.5 for p in probabilities[0]) < 18
    assert len(probabilities[1]) == 20
    assert min(probabilities[1]) > 0.5


def test_no_patch_predicted_positive_is_one_line(spots, slide, out):
    torch.nn.init.constant_(spots.module.head.bias[:1], 50)
    with pytest.raises(SettingsError) as error:
        evaluate_slides([slide], out, settings_of(predicted_positive=True))
    line = str(error.value)
    assert "none of 48 patches of tissue is predicted positive" in line
    assert "--predicted-positive" in line
    assert "\n" not in line
    assert not out.parent.exists()


def test_the_target_is_found_by_name_and_by_index(spots, slide, tmp_path):
    runs = {
        target: evaluate_slides([slide], tmp_path / f"{target}", settings_of(target=target))
        for target in (None, "Normal", "0")
    }
    assert [run.facts["target"] for run in runs.values()] == ["tumour", "normal", "normal"]
    tumour, named, index = ([row["probability"] for row in run.patch_rows] for run in runs.values())
    assert named == index
    np.testing.assert_allclose(np.add(tumour, named), 1, atol=1e-6)


def test_white_is_white_to_the_classifier(monkeypatch, spots, slide, tmp_path):
    """The hand-set classifier has white at 0; with another normalisation, white is not what zeros are."""
    end = {}
    for std in (-1.0, -0.5):
        for what in ("zeros", "white"):
            shifted = replace(spots, mean=(0.8,) * 3, std=(std,) * 3)
            monkeypatch.setattr(loading, "_load", lambda uri, weights, shifted=shifted: shifted)
            settings = settings_of(deletion_to=what, insertion_from=what)
            found = evaluate_slides([slide], tmp_path / f"{what}{std}", settings).scored[0]
            assert np.ptp(found.deletion_curves[:, -1]) < 1e-9
            np.testing.assert_allclose(found.insertion_curves[:, 0], found.deletion_curves[:, -1], atol=1e-9)
            end[std, what] = found.deletion_curves[0, -1]
        white = torch.full((1, 3, 64, 64), (1 - 0.8) / std)
        expected = spots.module(white).softmax(1)[0, 1]
        assert end[std, "white"] == pytest.approx(float(expected), abs=1e-6)
    assert end[-1.0, "zeros"] == end[-0.5, "zeros"]


@pytest.mark.usefixtures("spots")
def test_several_slides_give_patches_and_rows_each(slide, tmp_path):
    other = write_svs(tmp_path / "other.svs", [section(W, H, BOX, seed=1)])
    found = evaluate_slides([slide, other, slide], tmp_path / "out", settings_of(stability_mpx=0.05))
    assert [row["slide"] for row in found.patch_rows] == ["slide.svs"] * 3 + ["other.svs"] * 3
    assert [row.slide for row in found.stability] == ["slide.svs"] * 4 + ["other.svs"] * 4
    assert found.facts["slides"] == ["slide.svs", "other.svs"]


def test_slides_with_one_name_are_told_apart(monkeypatch):
    monkeypatch.chdir("/")
    slides = [Path(p) for p in ("/in/a/s.svs", "/in/b/c/s.svs", "/in/b/t.svs", "in/b/s.svs", "/in/a/s.svs")]
    assert distinct_names(slides) == dict(
        zip(slides, ["a/s.svs", "b/c/s.svs", "t.svs", "b/s.svs"], strict=False)
    )
    assert distinct_names([Path("x/s.svs"), Path("x/s.tif")]) == {
        Path("x/s.svs"): "s.svs",
        Path("x/s.tif"): "s.tif",
    }


# --------------------------------------------------------------------------------------- slides' maps


def times_of(folder):
    return {path: path.stat().st_mtime_ns for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.usefixtures("spots")
def test_maps_are_reused_until_a_setting_changes_them(slide, out, annotations):
    def run(**how):
        rows = evaluate_slides([slide], out, settings_of(annotations=annotations, **how), overwrite=True)
        return rows.localised, times_of(out / "maps")

    rows, times = run()
    assert [path.name for path in times].count("run.json") == 1
    assert run(seed=1, workers=2, step=1000) == (rows, times)
    changed_rows, changed = run(target="normal")
    assert changed.keys() == times.keys()
    assert all(changed[path] != time for path, time in times.items())
    assert changed_rows[0].auroc != rows[0].auroc


@pytest.mark.usefixtures("spots")
def test_the_method_is_judged_by_its_magnitude_where_its_sign_means_nothing(slide, out, annotations):
    """The classes of the hand-set network have opposite gradients; where it looks is the same."""
    gradients = [
        evaluate_slides([slide], out, s, overwrite=True).localised[1:]
        for s in (settings_of(annotations=annotations, target=target) for target in ("tumour", "normal"))
    ]
    assert gradients[0] == gradients[1]


@pytest.mark.usefixtures("spots")
def test_only_annotations_of_a_class_count(slide, tmp_path):
    file = tmp_path / "two.geojson"
    parts = [drawn(tmp_path / name, box, name=name) for name, box in (("A", (48, 48, 64, 64)), ("B", BOX))]
    features = [json.loads(part.read_text())["features"][0] for part in parts]
    file.write_text(json.dumps(features))
    shares = [
        evaluate_slides([slide], tmp_path / name, s).localised[0].annotated
        for name, s in (
            ("a", settings_of(annotations=file, annotation_classes=("a",))),
            ("all", settings_of(annotations=file)),
        )
    ]
    assert shares[1] > 0.75  # the tissue mask reaches a little further than the tissue
    assert shares[0] / shares[1] == pytest.approx(64 * 64 / (256 * 224), abs=0.01)


@pytest.mark.usefixtures("spots")
def test_methods_that_do_nothing_at_a_layer_are_said_to(spots, caplog):
    EvaluatedClassifier.of(settings_of(methods=("backward-hook", "centred-hook"), layers=("8", "last")))
    notices = [record.message for record in caplog.records if "lies behind" in record.message]
    assert notices == [
        "no strided convolution lies behind layer stage5: backward-hook and centred-hook change nothing "
        "there; what helps: an earlier layer, --layer input or --method shift-average"
    ]


@pytest.mark.usefixtures("spots")
def test_annotations_outside_tissue_are_said_to_be_and_give_no_figures(slide, tmp_path, out, caplog):
    file = drawn(tmp_path / "glass.geojson", (320, 280, 40, 30))
    found = evaluate_slides([slide], out, settings_of(annotations=file))
    assert "glass.geojson: none of its areas lies in tissue of slide.svs" in caplog.text
    assert all(math.isnan(row.auroc) and not row.hit and row.annotated == 0 for row in found.localised)
    assert strict(out / "metrics.json")["localised"][0]["auroc"] is None


# --------------------------------------------------------------------------------------------- errors


def other_size(tmp_path, slide):
    return {"annotations": drawn(tmp_path / "slide.geojson", (5000, 100, 64, 64))}, [slide]


def unknown_format(tmp_path, slide):
    (tmp_path / "slide.csv").write_text("x,y\n1,2\n")
    return {"annotations": tmp_path / "slide.csv"}, [slide]


def no_annotations(tmp_path, slide):
    return {"annotations": tmp_path / "none.geojson"}, [slide]


def one_for_two(tmp_path, slide):
    other = write_svs(tmp_path / "other.svs", [section(W, H, BOX)])
    return {"annotations": drawn(tmp_path / "slide.geojson", BOX)}, [slide, other]


def two_of_one_name(tmp_path, slide):
    (tmp_path / "below").mkdir()
    other = write_svs(tmp_path / "below" / "slide.svs", [section(W, H, BOX)])
    drawn(tmp_path / "slide.geojson", BOX)
    return {"annotations": tmp_path}, [slide, other]


def no_tissue(tmp_path, slide):
    return {}, [write_svs(tmp_path / "glass.svs", [section(W, H)])]


def no_slide(tmp_path, slide):
    return {}, [tmp_path / "none.svs"]


def one_of_two_is_none(tmp_path, slide):
    (tmp_path / "damaged.svs").write_bytes(b"II*\0" + 40 * b"\xff")
    return {}, [slide, tmp_path / "damaged.svs"]


WRONG = {
    other_size: (SettingsError, ["slide.geojson: its areas span x 5000", "384 × 320", "--annotation-scale"]),
    unknown_format: (SettingsError, ["slide.csv", "--annotations takes QuPath GeoJSON"]),
    no_annotations: (SettingsError, ["none.geojson: cannot be read", "--annotations"]),
    one_for_two: (SettingsError, ["slide.geojson", "slide.svs", "other.svs", "--annotations", "folder"]),
    two_of_one_name: (SettingsError, ["slide.geojson: cannot be of both", "below/slide.svs"]),
    no_tissue: (SlideError, ["glass.svs: no tissue found"]),
    no_slide: (SlideError, ["none.svs: no such file"]),
    one_of_two_is_none: (SlideError, ["damaged.svs: ", "leave out what cannot be used"]),
}  # fmt: skip


@pytest.mark.parametrize("make", WRONG, ids=lambda make: make.__name__)
@pytest.mark.usefixtures("spots")
def test_what_cannot_be_is_one_line_and_leaves_nothing(make, tmp_path, slide, out):
    how, slides = make(tmp_path, slide)
    kind, words = WRONG[make]
    with pytest.raises(kind) as error:
        evaluate_slides(slides, out, settings_of(**how))
    line = str(error.value)
    assert [word for word in words if word not in line] == []
    assert "\n" not in line
    assert not out.parent.exists()


@pytest.mark.parametrize(
    ("how", "kind", "words"),
    [
        ({"layers": ("nix",)}, ModelError, "no layer 'nix'"),
        ({"target": "nix"}, ModelError, "no class 'nix'"),
        ({"device": "nix"}, SettingsError, "unknown device"),
        ({"patches": 10**6}, SettingsError, "--patches"),
    ],
)
@pytest.mark.usefixtures("spots")
def test_settings_that_do_not_fit_the_classifier(slide, out, how, kind, words):
    with pytest.raises(kind, match=words):
        evaluate_slides([slide], out, settings_of(**how))
    assert not out.parent.exists()


def test_annotations_in_a_folder_go_with_their_slides(tmp_path, slide, spots):
    other = write_svs(tmp_path / "other.svs", [section(W, H, BOX, seed=1)])
    boxes = {"slide": (48, 48, 128, 224), "other": (176, 48, 64, 224)}
    for name, box in boxes.items():
        drawn(tmp_path / f"{name}.geojson", box)
    found = evaluate_slides([slide, other], tmp_path / "out", settings_of(annotations=tmp_path))
    assert [(row.slide, row.kind and row.kind.method) for row in found.localised] == [
        (f"{name}.svs", method) for name in boxes for method in (None, *PAIR)
    ]
    half, quarter = (row.annotated for row in found.localised if row.kind is None)
    assert half == pytest.approx(0.5, abs=0.12)
    assert half / quarter == pytest.approx(2, abs=0.05)
    assert names_in(tmp_path / "out" / "maps") == ["other", "slide"]


# ---------------------------------------------------------------------------------- the report's folder


def test_an_evaluation_is_kept_before_any_work_is_done(monkeypatch, spots, slide, out):
    evaluate_slides([slide], out, settings_of())
    before = times_of(out)
    monkeypatch.setattr(EvaluatedClassifier, "of", lambda settings: pytest.fail("worked"))
    with pytest.raises(OutputError, match="holds an evaluation already; --overwrite replaces it"):
        evaluate_slides([slide], out, settings_of())
    (out / "metrics.json").unlink()  # somebody's page is not overwritten either
    with pytest.raises(OutputError, match="--overwrite"):
        evaluate_slides([slide], out, settings_of())
    assert before.keys() - times_of(out).keys() == {out / "metrics.json"}


def test_an_evaluation_does_not_go_among_the_results_of_a_run(monkeypatch, slide, out):
    monkeypatch.setattr(EvaluatedClassifier, "of", lambda settings: pytest.fail("worked"))
    (out / "slide").mkdir(parents=True)
    (out / "slide" / "run.json").write_text("{}")
    for overwrite in (False, True):
        with pytest.raises(OutputError, match="holds results of wsi-saliency run; choose another"):
            evaluate_slides([slide], out, settings_of(), overwrite=overwrite)


@pytest.mark.usefixtures("spots")
def test_an_evaluation_waits_for_another_one_there_and_keeps_it(monkeypatch, slide, out):
    monkeypatch.setattr(EvaluatedClassifier, "of", lambda settings: pytest.fail("worked"))

    @contextmanager
    def locked(place):
        """The other one has just finished."""
        place.parent.mkdir(parents=True)
        place.write_text("{}")
        yield

    monkeypatch.setattr(evaluate, "locked", locked)
    with pytest.raises(OutputError, match="holds an evaluation already"):
        evaluate_slides([slide], out, settings_of())
    assert names_in(out) == ["metrics.json"]


@pytest.mark.usefixtures("spots")
def test_overwrite_replaces_an_evaluation(slide, out):
    evaluate_slides([slide], out, settings_of())
    before = times_of(out)
    evaluate_slides([slide], out, settings_of(patches=8), overwrite=True)
    after = times_of(out)
    assert after.keys() == before.keys()
    assert all(after[path] != time for path, time in before.items())
    assert len(strict(out / "metrics.json")["patches"]) == 8


@pytest.mark.parametrize("place", ["a.file", "a.file/below", "x" * 300])
def test_a_folder_that_cannot_be_is_found_before_any_work(monkeypatch, tmp_path, slide, place):
    (tmp_path / "a.file").write_text("something")
    monkeypatch.setattr(EvaluatedClassifier, "of", lambda settings: pytest.fail("worked"))
    with pytest.raises(OutputError, match=r"cannot be written .*-o"):
        evaluate_slides([slide], tmp_path / place, settings_of())
    assert names_in(tmp_path) == ["a.file"]


def broken(evaluation, folder):
    (folder / "metrics.json").write_text("{")
    raise ZeroDivisionError


def interrupted(*args, **how):
    raise KeyboardInterrupt


STATIONS = {
    "write_report": (evaluate, broken),
    "localise": (localised, interrupted),
    "_facts": (evaluate, interrupted),
}


@pytest.mark.parametrize("station", STATIONS)
@pytest.mark.usefixtures("spots")
def test_an_evaluation_broken_off_leaves_complete_maps_only(monkeypatch, slide, out, annotations, station):
    module, failing = STATIONS[station]
    monkeypatch.setattr(module, station, failing)
    with_annotations = module is localised
    with pytest.raises((ZeroDivisionError, KeyboardInterrupt)):
        evaluate_slides([slide], out, settings_of(annotations=annotations if with_annotations else None))
    if with_annotations:
        assert names_in(out) == ["maps"]
        assert len(Result.read(out / "maps" / "slide").maps) == len(PAIR)
    else:
        assert not out.parent.exists()


@pytest.mark.usefixtures("spots")
def test_an_evaluation_that_could_not_be_replaced_is_still_there(monkeypatch, slide, out):
    evaluate_slides([slide], out, settings_of())
    before = times_of(out)
    monkeypatch.setattr(evaluate, "write_report", broken)
    with pytest.raises(ZeroDivisionError):
        evaluate_slides([slide], out, settings_of(patches=8), overwrite=True)
    assert times_of(out) == before
    assert not [path for path in out.iterdir() if path.name.startswith(".")]


@pytest.mark.usefixtures("spots")
def test_metrics_json_is_there_last(monkeypatch, slide, out):
    """Who sees it, sees the rest, also where an older report is replaced."""
    evaluate_slides([slide], out, settings_of())
    seen, move, write = [], evaluate.os.replace, evaluate.write_report

    def with_a_picture(evaluation, folder):
        write(evaluation, folder)
        (folder / "scores.png").write_bytes(b"drawn")

    def watched(source, target):
        seen.append((Path(target).name, (out / "metrics.json").exists()))
        move(source, target)

    monkeypatch.setattr(evaluate.os, "replace", watched)
    monkeypatch.setattr(evaluate, "write_report", with_a_picture)
    evaluate_slides([slide], out, settings_of(), overwrite=True)
    assert [name for name, _ in seen][-1] == "metrics.json"
    assert not any(there for _, there in seen)
