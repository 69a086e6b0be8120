from __future__ import annotations

from pathlib import PurePath

import numpy as np
import pytest
import torch
from torch import nn

from tests.helpers.classifiers import classifier
from wsi_saliency.errors import ModelError
from wsi_saliency.models.classifier import standard_logits
from wsi_saliency.workflows.scores import Scored, logits_of, score_facts, scored

CPU = torch.device("cpu")


def paths(*folders):
    return [PurePath(folder) for folder in folders]


def told(found, name="tumour"):
    return {fact.key: fact for fact in score_facts(found, name)}


THREE = np.array(
    [[0.7, 0.2, 0.1], [0.1, 0.8, 0.1], [0.2, 0.5, 0.3], [0.0, 0.1, 0.9], [0.6, 0.2, 0.2]], np.float32
)
FOLDERS = paths("Tumor", "test/normal", "tumour", "other", "normal/tumour")


def test_folders_say_what_pictures_show():
    found = Scored.of(classifier("tumour", "normal", "fat"), THREE, 0, FOLDERS)
    assert found.labels.tolist() == [0, 1, 0, -1, 0]
    assert found.answers.tolist() == [0, 1, 1, 2, 0]
    assert found.wrong.tolist() == [False, False, True, False, False]


def test_accuracy_and_confusion_are_counted():
    facts = told(Scored.of(classifier("tumour", "normal", "fat"), THREE, 0, FOLDERS))
    assert facts["accuracy"].value == {"right": 0.75, "pictures": 4}
    assert facts["confusion"].value == {"tumour": {"tumour": 2, "normal": 1}, "normal": {"normal": 1}}
    assert facts["confusion"].text == "tumour: 2 as tumour, 1 as normal; normal: 1 as normal"
    assert facts["notes"].text == "folders that are no class, and do not count: other"
    assert facts["folders"].value["tumour"] == {"pictures": 1, "median": pytest.approx(0.2)}
    assert "warnings" not in facts


def test_quantiles_are_those_of_the_target():
    scores = np.linspace(0, 1, 101, dtype=np.float32)[:, None]
    facts = told(Scored.of(classifier("tumour"), scores, 0, []))
    assert set(facts) == {"scores"}
    quantiles = facts["scores"].value["quantiles"]
    assert list(map(float, quantiles)) == pytest.approx(list(quantiles.values()), abs=1e-6)
    assert "tumour: least 0.000, 5 % 0.050, 25 % 0.250, half below 0.500" in facts["scores"].text


def test_of_a_single_logit_other_folders_are_the_rest():
    one = classifier("tumour")
    scores = np.array([[0.9], [0.4], [0.2], [0.6], [0.7]], np.float32)
    found = Scored.of(one, scores, 0, paths("tumour", "tumour", "normal", "fat", "."))
    assert found.labels.tolist() == [0, 0, 1, 1, -1]
    assert told(found)["confusion"].value == {
        "tumour": {"tumour": 1, "not tumour": 1},
        "not tumour": {"tumour": 1, "not tumour": 1},
    }
    assert "accuracy" not in told(Scored.of(one, scores, 0, paths("a", "b", "c", "d", "e")))


def test_fewer_than_by_chance_is_a_warning():
    swapped = 1 - np.array([[0.9, 0.1], [0.2, 0.8]], np.float32)
    facts = told(Scored.of(classifier("tumour", "normal"), swapped, 0, paths("tumour", "normal")))
    assert facts["warnings"].text.startswith("only 0.00 of the pictures are taken for")


def test_scores_are_those_of_the_network_in_any_batch():
    rng = np.random.default_rng(0)
    patches = rng.integers(0, 256, (7, 16, 16, 3)).astype(np.uint8)
    three = classifier("a", "b", "c")
    with torch.no_grad():
        wanted = standard_logits(three.module(three.normalised(patches, CPU)))
    assert torch.allclose(logits_of(three, patches, CPU, 3), wanted, atol=1e-6)
    found, speed = scored(three, patches, 1, [], CPU)
    assert np.allclose(found.of_target, wanted.softmax(1)[:, 1].numpy(), atol=1e-6)
    assert speed.value["patches_per_second"] > 0
    assert speed.value["device"] == "cpu"


class Full(nn.Module):
    """Takes so many patches at a time and not more."""

    def __init__(self, most):
        super().__init__()
        self.most, self.seen = most, []

    def forward(self, x):
        if len(x) > self.most:
            raise torch.OutOfMemoryError
        self.seen.append(len(x))
        return x.mean((2, 3))


def test_batches_that_do_not_fit_are_halved():
    patches = np.zeros((10, 16, 16, 3), np.uint8)
    module = Full(2)
    assert logits_of(classifier("a", "b", "c", module=module), patches, CPU, 8).shape == (10, 3)
    assert module.seen == [2, 2, 2, 2, 2]
    with pytest.raises(ModelError, match="a single patch does not fit"):
        logits_of(classifier("a", "b", "c", module=Full(0)), patches, CPU)
