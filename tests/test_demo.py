"""The main job on what is bundled: the demo classifier must light up in the nests of the sample slide."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image, ImageDraw

from tests.helpers.paths import SAMPLE_DATA
from wsi_saliency import RunSettings, explain_slide, open_slide
from wsi_saliency.heatmap.ome_zarr import Heatmap
from wsi_saliency.slides.tissue import tissue_mask

SAMPLE = SAMPLE_DATA


def nests_at(heatmap):
    """Which cells have their middle in a nest, (h, w) bool."""
    size, place = heatmap.level_sizes[0], heatmap.info.placement
    drawn = Image.new("1", (size.w, size.h))
    for feature in json.loads((SAMPLE / "tumour_nests.geojson").read_text())["features"]:
        ring = np.array(feature["geometry"]["coordinates"][0])
        cells = (ring - (place.x0, place.y0)) / (place.fx, place.fy) - 0.5
        ImageDraw.Draw(drawn).polygon([tuple(p) for p in cells], fill=1)
    return np.array(drawn)


def tissue_at(heatmap):
    """Which cells have their middle in tissue, (h, w) bool."""
    size, place = heatmap.level_sizes[0], heatmap.info.placement
    with open_slide(SAMPLE / "tumour_nests.svs") as slide:
        tissue = tissue_mask(slide)
    x, y = place.centre(np.arange(size.w), np.arange(size.h)[:, None])
    return tissue.fractions(x, y, 1, 1) > 0.5


@pytest.mark.parametrize("method", ["backward-hook", "surrogate"])
def test_saliency_is_at_least_twice_as_strong_in_the_nests(tmp_path, method):
    settings = RunSettings(model="demo", methods=(method,), overlap=0, device="cpu")
    result = explain_slide(SAMPLE / "tumour_nests.svs", tmp_path / "map", settings)
    heatmap = Heatmap.open(result.folder / "saliency.ome.zarr")
    magnitude, nests, tissue = np.abs(heatmap.read(0)), nests_at(heatmap), tissue_at(heatmap)
    assert 0.1 < nests[tissue].mean() < 0.4
    assert magnitude[nests & tissue].mean() > 2 * magnitude[~nests & tissue].mean()
