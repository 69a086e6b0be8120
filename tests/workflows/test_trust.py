from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from tests.helpers.classifiers import classifier
from tests.helpers.nets import spot_classifier
from wsi_saliency.workflows import trust
from wsi_saliency.workflows.trust import batch_facts, drawn, precision_fact

CPU = torch.device("cpu")


class Mixing(nn.Module):
    """Subtracts the mean of the batch, as a normalisation in training mode does."""

    def forward(self, x):
        return (x - x.mean(0)).mean((2, 3))[:, :2]


def test_a_network_that_treats_patches_one_by_one():
    (fact,) = batch_facts(classifier("a", "b"), drawn(16), CPU)
    assert fact.value["patches"] == 8
    assert fact.value["largest_difference"] < 1e-5


def test_a_network_that_mixes_patches_is_found():
    patches = drawn(16)
    fact, warning = batch_facts(classifier("a", "b", module=Mixing()), patches, CPU)
    means = (patches / 255.0 - 0.5) / 0.5
    means = means.mean((1, 2))[:, :2]
    assert fact.value["largest_difference"] == pytest.approx(np.abs(means - means.mean(0)).max(), rel=1e-4)
    assert "depends on the others of its batch" in warning.text


def test_logits_that_are_no_numbers_are_no_proof():
    class Broken(nn.Module):
        def forward(self, x):
            return x.mean((2, 3))[:, :2] * (math.nan if len(x) > 1 else 1.0)

    assert batch_facts(classifier("a", "b", module=Broken()), drawn(16), CPU)[1].key == "warnings"


def test_drawn_patches_are_squares_of_many_colours():
    patches = drawn(20, 3)
    assert (patches.shape, patches.dtype) == ((3, 20, 20, 3), np.uint8)
    assert len(np.unique(patches.reshape(-1, 3), axis=0)) == 3 * 8 * 8
    assert np.array_equal(drawn(20, 3), patches)


def speeds(monkeypatch, ratio):
    monkeypatch.setattr(trust, "_seconds", lambda one, _: ratio if one.network.precision == "fp32" else 1.0)


@pytest.mark.parametrize(("ratio", "recommended"), [(1.5, "bf16"), (0.9, "fp32")])
def test_another_format_is_recommended_only_if_it_is_faster(monkeypatch, ratio, recommended):
    speeds(monkeypatch, ratio)
    fact = precision_fact(spot_classifier(64), drawn(64), (), CPU)
    bf16 = fact.value["formats"]["bf16"]
    assert 0.999 < bf16["logits"] < 1
    assert 0.999 < bf16["maps"] <= 1
    assert bf16["speed"] == ratio
    assert fact.value["recommended"] == recommended
    assert f"{recommended} is " in fact.text


def test_another_format_is_recommended_only_if_it_is_equal(monkeypatch):
    speeds(monkeypatch, 10.0)
    monkeypatch.setattr(trust, "pearson", lambda a, b: 0.998)
    assert precision_fact(spot_classifier(64), drawn(64), (), CPU).value["recommended"] == "fp32"


def test_unknown_correlation_recommends_nothing(monkeypatch):
    speeds(monkeypatch, 10.0)
    monkeypatch.setattr(trust, "pearson", lambda a, b: math.nan)
    fact = precision_fact(spot_classifier(64), drawn(64), (), CPU)
    assert fact.value["recommended"] == "fp32"
    assert "bf16: logits all the same, maps all the same" in fact.text


def test_a_classifier_without_the_default_map_is_not_compared():
    fact = precision_fact(classifier("tumour"), drawn(16), (), CPU)
    assert fact.value == {"recommended": "fp32", "formats": {}}
    assert fact.text.startswith("fp32; others not compared: ")
