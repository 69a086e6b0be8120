"""Planted stimuli: what lies at a place of the slide must lie at that place of the heatmap."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.helpers.nets import spot_classifier
from tests.helpers.runs import without_pictures
from tests.helpers.slides import pyramid, write_svs
from wsi_saliency import open_slide, train_surrogate
from wsi_saliency.geometry import Mpp, Region
from wsi_saliency.heatmap.ome_zarr import Heatmap
from wsi_saliency.saliency.engine import Explainer
from wsi_saliency.settings import ATTRIBUTIONS, METHODS, RunSettings
from wsi_saliency.workflows import explain
from wsi_saliency.workflows.explain import explain_slide

SIDE_UM = 512  # of the slide
RADIUS_UM = 6
APART_UM = 64


def planted(seed=0):
    """Draw places of spots in µm, (n, 2) x and y: apart from each other and off any grid."""
    rng = np.random.default_rng(seed)
    ticks = np.arange(APART_UM, SIDE_UM - APART_UM / 2, APART_UM)
    lattice = np.stack(np.meshgrid(ticks, ticks), -1).reshape(-1, 2)
    return lattice + rng.uniform(-10, 10, lattice.shape)


def slide_with_spots(path, mpp, places):
    """Draw dark discs on white at subpixel places; pixel i covers [i, i + 1)."""
    w, h = round(SIDE_UM / mpp.x), round(SIDE_UM / mpp.y)
    rgb = np.full((h, w, 3), 255, np.uint8)
    ys, xs = (np.arange(h) + 0.5) * mpp.y, (np.arange(w) + 0.5) * mpp.x
    for x, y in places:
        rows, columns = np.abs(ys - y) < RADIUS_UM, np.abs(xs - x) < RADIUS_UM
        distance = np.hypot(xs[columns] - x, ys[rows, None] - y)
        rgb[np.ix_(rows, columns)] = np.where(distance < RADIUS_UM, 30, 255)[..., None]
    return write_svs(path, pyramid(rgb, (1, 2, 4)), mpp=mpp.x)


def found_at(heatmap, level, places):
    """Centres of mass of the map's magnitude around each place, in µm, from the file alone."""
    place, mpp = heatmap.info.placement.at_level(level), heatmap.info.slide_mpp
    values = np.abs(heatmap.read(level).astype(np.float64))
    cell_x, cell_y = np.arange(values.shape[1]), np.arange(values.shape[0])
    x, y = place.centre(cell_x, cell_y)
    x, y = x * mpp.x, y * mpp.y
    found = []
    for at_x, at_y in places:
        reach = APART_UM / 2 - 10
        box = values * (np.abs(x - at_x) < reach)[None, :] * (np.abs(y - at_y) < reach)[:, None]
        found.append(((box * x[None, :]).sum() / box.sum(), (box * y[:, None]).sum() / box.sum()))
    return np.array(found)


@pytest.fixture(scope="module")
def slides(tmp_path_factory):
    folder = tmp_path_factory.mktemp("spots")
    places = planted()
    return places, {
        mpp: slide_with_spots(folder / f"spots-{mpp}.svs", Mpp(mpp, mpp), places) for mpp in (0.5, 0.26)
    }


@pytest.fixture(scope="module")
def surrogate(slides, tmp_path_factory):
    """Train a surrogate of the spot classifier on a slide of spots."""
    classifier, rng = spot_classifier(), np.random.default_rng(0)
    with open_slide(slides[1][0.5]) as slide:
        rgb = slide.read(Region(0, 0, slide.size.w, slide.size.h), slide.size)
    corners = rng.integers(0, len(rgb) - 256, (64, 2))
    patches = np.stack([rgb[y : y + 256, x : x + 256] for x, y in corners])
    batches = classifier.normalised(patches, torch.device("cpu")).split(8)
    trained = train_surrogate(classifier.module, batches, epochs=12, held_out=0.125)
    assert trained.scores.prediction_difference < 0.05
    trained.save(path := tmp_path_factory.mktemp("surrogate") / "spots.safetensors")
    return path


CASES = [  # method, attributions, reductions of the layers; a run each
    *((method, ATTRIBUTIONS, ("8",)) for method in METHODS if method != "centred-hook"),
    *((method, ATTRIBUTIONS[:2], ("4", "16")) for method in ("none", "backward-hook", "forward-hook")),
    ("centred-hook", ATTRIBUTIONS, ("4", "8", "16")),
]
BIAS = {  # cells
    "backward-hook": 0.25,  # of what has the activation as a factor, nothing is taken out
    "centred-hook": 0.05,
    "surrogate": 0.25,  # which has the original's answers, not its gradient
}
SPREAD = {"backward-hook": 0.3}


@pytest.mark.parametrize("mpp", [0.5, 0.26], ids=["same mpp", "resampled"])
@pytest.mark.parametrize(("method", "attributions", "layers"), CASES)
def test_planted_spots_come_back_in_place(
    slides, surrogate, tmp_path, monkeypatch, mpp, layers, attributions, method
):
    places, paths = slides
    without_pictures(monkeypatch)
    monkeypatch.setattr(explain, "write_slide_page", lambda folder, *args, **how: None)
    settings = RunSettings(
        model="spots",
        methods=(method,),
        attributions=attributions,
        layers=layers,
        tissue_threshold=0,
        device="cpu",
    )
    explainer = Explainer.of(
        spot_classifier(),
        layers=settings.layers,
        methods=settings.methods,
        attributions=settings.attributions,
        surrogate=surrogate,
        device="cpu",
    )
    explainer.network.steps = 5
    result = explain_slide(paths[mpp], tmp_path / "out", settings, explainer=explainer)
    assert len(result.maps) == len(attributions) * len(layers)
    for made in result.record["maps"]:
        check_places(result.folder / made["files"]["ome_zarr"], places, made)


def check_places(path, places, made):
    """Compare what was found in each level with what was planted."""
    heatmap = Heatmap.open(path)
    method, attribution, reduction = made["method"], made["attribution"], int(made["asked_as"][0])
    for level in range(len(heatmap.levels)):
        cell_um = reduction * 0.5 * 2**level
        if cell_um > RADIUS_UM * 2:
            continue  # a spot within one cell has no place within it
        where = f"{made['name']}, level {level}"
        errors = (found_at(heatmap, level, places) - places) / cell_um
        assert np.abs(errors.mean(0)).max() < BIAS.get(method, 0.15), where
        if attribution == "gradient":  # the gates of coarser stages cut it into their own, larger cells
            assert np.abs(errors).max(1).mean() < 0.35, where
        else:
            assert np.abs(errors).max() < 0.5, where
            assert np.abs(errors).max(1).mean() < SPREAD.get(method, 0.25), where
