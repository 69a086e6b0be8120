from __future__ import annotations

from dataclasses import fields

import numpy as np
import pytest
import torch
from torch import nn

from tests.helpers.nets import narrow_net, untrained
from tests.helpers.pictures import TARGET, control_of, pictures
from tests.helpers.untouched import assert_untouched, state_of
from wsi_saliency.evaluation.causal import CausalScorer, insertion_deletion
from wsi_saliency.evaluation.controls import centred_gaussian, random_maps
from wsi_saliency.evaluation.map_comparison import CENTRED, RANDOM, MapComparison
from wsi_saliency.evaluation.maps import compared_maps, kind_of
from wsi_saliency.evaluation.metrics import total_variation
from wsi_saliency.saliency.batches import Batch
from wsi_saliency.saliency.network import Network, eval_mode
from wsi_saliency.saliency.smoothing import smoothed
from wsi_saliency.settings import METHODS

STEP = 16 * 64


class Smoothed(nn.Module):
    """A network that is always smoothed, so that nothing has to know of it."""

    def __init__(self, net, method, surrogate):
        super().__init__()
        self.net, self.how = net, (method, surrogate)
        self.register_forward_hook(lambda module, args, output: None)  # keeps it from being copied

    def forward(self, x):
        with smoothed(self.net, *self.how):
            return self.net(x)


def comparison_of(
    net=None, methods=METHODS, attributions=("gradient",), layers=("input", "layer2"), order=None, **how
):
    """A comparison of a small network's maps; one with the same seed is made each time."""
    net = net or narrow_net()
    order = slice(None) if order is None else order
    images, target = pictures()[order], TARGET[order]
    surrogate = untrained(net) if "surrogate" in methods else None
    maps = compared_maps(methods, attributions, layers)
    network = Network.of(net, maps, images[:1], surrogate=surrogate)
    settings = {"batch": Batch(3), "step": STEP} | how
    return MapComparison(net, network, images, target, "softmax", **settings)


def by_kind(scores):
    return {scored.kind: scored for scored in scores.scored}


def arrays_of(scored):
    return {f.name: getattr(scored, f.name) for f in fields(scored) if f.name != "kind"}


def assert_equal(some, others):
    for name, values in arrays_of(some).items():
        np.testing.assert_array_equal(values, getattr(others, name), name)


@pytest.fixture(scope="module")
def original():
    return comparison_of().run()


@pytest.fixture(scope="module")
def on_method():
    return comparison_of(score_on="method").run()


@pytest.mark.parametrize("score_on", ["original", "method"])
@pytest.mark.parametrize(
    ("methods", "attributions", "layers"),
    [(METHODS, ("gradient", "gradcam"), ("layer2",)), (("none",), ("gradient",), ("input", "layer4"))],
)
def test_progress_is_called_for_what_it_costs(methods, attributions, layers, score_on):
    comparison, calls = comparison_of(None, methods, attributions, layers, score_on=score_on), []
    cost = comparison.cost
    comparison.run(calls.append)
    assert sum(calls) == cost
    assert min(calls) > 0


def test_methods_come_first_and_all_controls_after_them():
    comparison = comparison_of(None, METHODS[1:3], ("gradcam", "gradient"), ("layer2", "input"))
    maps = [kind_of(comparison.network, spec) for spec in comparison.network.maps]
    assert len(maps) == 3 * 2 * 2
    controls = [control_of(kind) for kind in maps if kind.method != "none"]
    assert [s.kind for s in comparison.run().scored] == [*maps, *controls, RANDOM, CENTRED]


def test_scores_are_those_of_the_maps_where_they_lie(original):
    net = narrow_net()
    for kind, scored in by_kind(original).items():
        if kind in (RANDOM, CENTRED):
            continue
        maps, variation, placement = original.explained[kind]
        direct = insertion_deletion(net, pictures(), maps, TARGET, STEP, batch_size=3, placement=placement)
        np.testing.assert_allclose(scored.insertion_curves, direct.insertion, atol=1e-12)
        np.testing.assert_allclose(scored.deletion_curves, direct.deletion, atol=1e-12)
        np.testing.assert_allclose(scored.insertion, direct.insertion_auc, atol=1e-12)
        np.testing.assert_allclose(scored.deletion, direct.deletion_auc, atol=1e-12)
        np.testing.assert_array_equal(scored.total_variation, variation)


def test_substrates_and_steps_reach_the_scores():
    white = torch.ones(3, 1, 1, dtype=torch.float64)
    comparison = comparison_of(
        None, ("none",), layers=("layer2",), step=1000, deletion_to="mean", insertion_from=white
    )
    scored = comparison.run().scored[0]
    maps, _, placement = comparison.run().explained[scored.kind]
    direct = insertion_deletion(
        narrow_net(), pictures(), maps, TARGET, 1000, deletion_to="mean", insertion_from=white,
        placement=placement,
    )  # fmt: skip
    np.testing.assert_allclose(scored.insertion_curves, direct.insertion, atol=1e-12)
    np.testing.assert_allclose(scored.deletion_curves, direct.deletion, atol=1e-12)
    assert scored.insertion_curves.shape == (5, 6)


def test_the_same_seed_gives_the_same_numbers_and_another_other_random_maps(original):
    again, other = comparison_of().run(), comparison_of(seed=1).run()
    for kind, scored in by_kind(original).items():
        assert_equal(scored, by_kind(again)[kind])
        if kind != RANDOM:
            assert_equal(scored, by_kind(other)[kind])
    assert (by_kind(other)[RANDOM].insertion != by_kind(original)[RANDOM].insertion).any()
    for method, values in original.prediction_difference.items():
        np.testing.assert_array_equal(values, again.prediction_difference[method])


def test_permuting_patches_permutes_their_scores(original):
    order = torch.tensor([3, 0, 4, 2, 1])
    permuted = comparison_of(order=order).run()
    for kind, scored in by_kind(original).items():
        if kind == RANDOM:
            continue  # is drawn patch by patch
        for name, values in arrays_of(scored).items():
            np.testing.assert_allclose(getattr(by_kind(permuted)[kind], name), values[order], atol=1e-6)
    for method, values in original.prediction_difference.items():
        np.testing.assert_allclose(permuted.prediction_difference[method], values[order], atol=1e-6)


def test_prediction_difference(original):
    found = original.prediction_difference
    assert list(found) == list(METHODS)
    assert (found["none"] == 0).all()
    assert (found["backward-hook"] == 0).all()
    net, rows = narrow_net(), torch.arange(len(TARGET))
    for method in ("forward-hook", "surrogate"):
        model = Smoothed(net, method, untrained(net) if method == "surrogate" else None)
        with torch.no_grad(), eval_mode(model):
            p, before = (m(pictures()).softmax(1)[rows, TARGET] for m in (model, net))
        assert (found[method] > 0).all()
        np.testing.assert_allclose(found[method], (p - before).abs(), atol=1e-6)


def test_without_a_method_that_changes_predictions_nothing_is_scored_otherwise(original, on_method):
    for kind, scored in by_kind(on_method).items():
        if kind.method not in ("forward-hook", "surrogate"):
            assert_equal(scored, by_kind(original)[kind])


@pytest.mark.parametrize("method", ["forward-hook", "surrogate"])
def test_a_method_is_scored_on_the_network_that_it_makes(original, on_method, method):
    net = narrow_net()
    model = Smoothed(net, method, untrained(net) if method == "surrogate" else None)
    direct = CausalScorer(model, pictures(), TARGET, STEP, batch_size=5)
    with torch.no_grad(), eval_mode(model):
        whole = model(pictures()).softmax(1)[torch.arange(len(TARGET)), TARGET]
    seen = [kind for kind in original.explained if kind.method == method]
    assert [kind.control for kind in seen] == [None, "blurred-none"] * 2
    for kind in seen:
        maps, _, placement = on_method.explained[kind]
        scored, expected = by_kind(on_method)[kind], direct(maps, placement=placement)
        np.testing.assert_allclose(scored.insertion_curves[:, -1], whole, atol=1e-9)
        np.testing.assert_allclose(scored.deletion_curves[:, 0], whole, atol=1e-9)
        np.testing.assert_allclose(scored.insertion_curves, expected.insertion, atol=1e-9)
        np.testing.assert_allclose(scored.deletion_curves, expected.deletion, atol=1e-9)
        assert abs(scored.insertion - by_kind(original)[kind].insertion).max() > 1e-3


@pytest.mark.parametrize(
    ("layers", "cells"), [(("input", "layer2"), 8), (("input", "layer4"), 2), (("input",), 64)]
)
def test_random_maps_are_as_coarse_as_the_main_layer_and_the_gaussian_is_as_fine_as_the_patch(layers, cells):
    scored = by_kind(comparison_of(None, (), layers=layers, seed=3).run())
    maps = {
        RANDOM: random_maps(5, cells, cells, 3),
        CENTRED: centred_gaussian(64, 64).expand(5, -1, -1),
    }
    for kind, known in maps.items():
        np.testing.assert_array_equal(scored[kind].total_variation, total_variation(known))
        direct = insertion_deletion(narrow_net(), pictures(), known, TARGET, STEP)
        np.testing.assert_allclose(scored[kind].insertion, direct.insertion_auc, atol=1e-12)


def test_the_comparison_of_some_patches():
    comparison = comparison_of(None, ("none",), layers=("layer2",))
    some = comparison.of(slice(0, None, 2))
    assert torch.equal(some.target, TARGET[::2])
    np.testing.assert_allclose(some.probabilities, comparison.probabilities[::2], atol=1e-12)
    maps, _, placement = comparison.run().explained[kind_of(comparison.network, comparison.network.maps[0])]
    part, whole = (
        c.scorer("none")(m, placement=placement) for c, m in ((some, maps[::2]), (comparison, maps))
    )
    np.testing.assert_allclose(part.insertion, whole.insertion[::2], atol=1e-12)
    passes = list(comparison.passes(lambda images, target: (len(images), target)))
    assert [n for n, _ in passes] == [3, 2]
    assert torch.equal(torch.cat([target for _, target in passes]), TARGET)


@pytest.mark.parametrize("score_on", ["original", "method"])
def test_the_model_stays_as_it_is(score_on):
    net = narrow_net()
    before = state_of(net)
    comparison_of(net, score_on=score_on).run()
    assert_untouched(net, before)
