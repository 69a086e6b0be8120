from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from tests.helpers.classifiers import classifier, network
from wsi_saliency.errors import ModelError
from wsi_saliency.models.classifier import checked
from wsi_saliency.workflows.answers import blank_facts, output_fact, target_fact


class Brightness(nn.Module):
    """The mean of what it sees, times ``slope``, as the logit of each class in turn with another sign."""

    def __init__(self, slope, classes):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([slope * (-1) ** i for i in range(classes)]))

    def forward(self, x):
        return x.mean((1, 2, 3))[:, None] * self.weight


@pytest.mark.parametrize(
    ("names", "target", "text", "value"),
    [
        (("tumour",), None, "0: tumour, the only logit", (0, "tumour", "only")),
        (
            ("normal", "Cancer"),
            None,
            "1: Cancer, the one class that is called tumour",
            (1, "Cancer", "tumour"),
        ),
        (("a", "b"), "B", "1: b, as --target says", (1, "b", "asked")),
        (
            ("a", "b"),
            None,
            "a run needs --target, a class's name or index: no class is called tumour",
            (None, None, "none"),
        ),
        (
            ("tumor", "cancer"),
            None,
            "a run needs --target, a class's name or index: "
            "several classes are called tumour (tumor, cancer)",
            (None, None, "several"),
        ),
    ],
)
def test_the_target_and_why(names, target, text, value):
    fact = target_fact(classifier(*names), target)
    assert (fact.text, fact.value) == (text, dict(zip(("index", "name", "why"), value, strict=True)))


def test_the_target_of_classes_without_names():
    numbered = replace(classifier("0", "1"), named=False)
    assert target_fact(numbered, None).value["why"] == "unnamed"
    assert target_fact(numbered, None).text.endswith("a class's index: the classes are not named")
    fact = target_fact(numbered, "1")
    assert (fact.text, fact.value["name"]) == ("1, as --target says", None)


def test_a_target_that_is_no_class():
    with pytest.raises(ModelError, match="has no class 'c'"):
        target_fact(classifier("a", "b"), "c")


def test_what_the_network_itself_makes_of_its_logits():
    plain = checked(classifier("a", "b"))
    assert output_fact(plain).text == "2 logits, not squashed by the network; softmax gives probabilities"
    ended = checked(classifier("a", "b", module=network(2, nn.Softmax(1))))
    assert output_fact(ended).text == (
        "2 logits, the Softmax at the network's end is taken off; softmax gives probabilities"
    )
    assert output_fact(ended).value == {"logits": 2, "taken_off": "Softmax", "probabilities": "softmax"}
    assert output_fact(checked(classifier("a"))).text.startswith("one logit, ")


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


@pytest.mark.parametrize("names", [("tumour",), ("tumour", "normal")])
def test_scores_of_white_black_and_grey_are_those_of_the_formula(names):
    bright = classifier(*names, module=Brightness(2.0, len(names)))
    facts = {fact.key: fact for fact in blank_facts(bright, 0)}
    difference = 2.0 * len(names)  # of the logits, for a softmax of two is the sigmoid of it
    for key, byte in (("glass", 255), ("black", 0), ("grey", 128)):
        wanted = sigmoid(difference * (byte / 255 - 0.5) / 0.5)
        assert facts[key].value[0] == pytest.approx(wanted, abs=1e-5)
        assert f" patch scores tumour {wanted:.3f}" in facts[key].text
    assert facts["warnings"].text.startswith(f"calls glass tumour: {sigmoid(difference):.2f}; ")


def test_glass_that_is_not_the_target_is_no_warning():
    dark = classifier("tumour", module=Brightness(-2.0, 1))
    assert [fact.key for fact in blank_facts(dark, 0)] == ["glass", "black", "grey"]
    bright = classifier("tumour", "normal", module=Brightness(2.0, 2))
    assert [fact.key for fact in blank_facts(bright, None)] == ["glass", "black", "grey"]
    assert [fact.key for fact in blank_facts(bright, 1)] == ["glass", "black", "grey"]


class Falling(nn.Module):
    """Logits that fall from class to class."""

    def forward(self, x):
        return -torch.arange(12.0).expand(len(x), 12)


def test_of_many_classes_the_highest_and_the_target_are_shown():
    many = classifier(*[f"c{i}" for i in range(12)], module=Falling())
    fact = blank_facts(many, 11)[0]
    weights = [math.exp(-i) for i in range(12)]
    told = [f"c{i} {weights[i] / sum(weights):.3f}" for i in (0, 1, 2, 3, 4, 11)]
    assert fact.text == f"a white patch scores {', '.join(told)}: of 12 classes the highest and the target"
    assert len(fact.value) == 12
    assert blank_facts(many, None)[0].text.endswith(" c4 0.012: of 12 classes the highest")
    assert blank_facts(many, 2)[0].text.endswith(" c4 0.012: of 12 classes the highest")


def test_classes_without_names_are_called_by_their_numbers():
    fact = blank_facts(replace(classifier("0", "1"), named=False), None)[0]
    assert fact.text.startswith("a white patch scores class 0 0.")
