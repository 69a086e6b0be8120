"""The documented table of architectures, row by row for some of them, as its script makes it."""

from __future__ import annotations

import re

import pytest

from benchmarks.architectures import ARCHITECTURES, cell, classifier_of, outcome
from tests.helpers.paths import ROOT
from wsi_saliency.settings import ATTRIBUTIONS

ROWS = {
    name: dict(zip(ATTRIBUTIONS, cells.strip(" |").split(" | "), strict=True))
    for name, cells in re.findall(
        r"^\| `(\w+)` \| `[^|]+ \| ((?:[^|]+\|){5})$", (ROOT / "docs/classifiers.md").read_text(), re.M
    )
}


def test_the_rows_are_of_the_script():
    assert list(ROWS) == list(ARCHITECTURES)
    assert len(ROWS) == 30


@pytest.mark.parametrize(
    "name",
    [
        "resnet18",
        "legacy_seresnet18",
        "mobilenetv3_small_050",
        "regnetx_002",
        "convnext_atto",
        "convnextv2_atto",
        "vit_tiny_patch16_224",
        "poolformer_s12",
    ],
)
def test_there_are_the_maps_that_the_table_says(name):
    classifier = classifier_of(name)
    for attribution in ("gradient", "deeplift", "gradcam"):
        assert outcome(classifier, attribution, "none") == ROWS[name][attribution], attribution


def test_a_cell_says_what_differs():
    assert cell({"none": "ok", "surrogate": "ok"}) == "ok"
    assert cell({"none": "no rule", "surrogate": "no rule"}) == "no rule"
    assert cell({"none": "ok", "surrogate": "no rule"}) == "ok (none); no rule (surrogate)"
