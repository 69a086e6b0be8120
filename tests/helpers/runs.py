"""Runs of the spot classifier over a small slide, and what is read of their results."""

from __future__ import annotations

import csv
import json

import numpy as np
import tifffile

from tests.helpers.nets import spot_classifier
from wsi_saliency.heatmap.ome_zarr import Heatmap
from wsi_saliency.saliency.engine import Explainer
from wsi_saliency.settings import RunSettings
from wsi_saliency.workflows import explain
from wsi_saliency.workflows.explain import explain_slide

REMADE = {"overview.png", "tiles.csv", "run.json", "overlay.groovy", "tiles.geojson.gz", "report.html"}
"""What tells of all maps of a result: made anew when maps are added."""

OUTPUTS = {"saliency.ome.zarr", "saliency.ome.tif", *REMADE}
SETTINGS = RunSettings(
    model="spots", methods=("none",), attributions=("gradient",), layers=("8",), device="cpu"
)


def explainer_for(settings, patch=64, **how):
    names = ("layers", "methods", "attributions", "targets")
    chosen = {name: getattr(settings, name) for name in names}
    return Explainer.of(spot_classifier(patch, **how), device="cpu", **chosen)


def explained(slide, folder, settings=SETTINGS, patch=64, **how):
    return explain_slide(slide, folder, settings, explainer=explainer_for(settings, patch), **how)


def without_pictures(patch):
    """Let runs write a word in place of their overviews, which take most of a small run."""
    for name in ("write_overview", "write_contact_sheet"):
        patch.setattr(explain, name, lambda path, *args, **how: path.write_bytes(b"drawn"))


def strict_json(path):
    def refuse(name):
        raise ValueError(f"{name} is no JSON")

    return json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)


def rows_of(folder):
    with (folder / "tiles.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def values_of(folder, store="saliency.ome.zarr"):
    """All channels of a map, (C, h, w)."""
    heatmap = Heatmap.open(folder / store)
    return np.stack([heatmap.read(0, channel=i) for i in range(len(heatmap.info.channels))])


def is_left(folder):
    """What lies beside a result that was not to be."""
    return sorted(path.name for path in folder.parent.iterdir()) if folder.parent.exists() else []


def assert_same_values(folder, expected):
    """Two results of the same maps have the same files, with the same values."""
    assert {path.name for path in folder.iterdir()} == {path.name for path in expected.iterdir()}
    assert rows_of(folder) == rows_of(expected)
    for store in expected.glob("*.zarr"):
        np.testing.assert_array_equal(values_of(folder, store.name), values_of(expected, store.name))
    for file in expected.glob("*.tif"):
        np.testing.assert_array_equal(*(tifffile.imread(place / file.name) for place in (folder, expected)))
