from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.nets import random_net, spot_classifier
from tests.test_smoothing import assert_untouched, state_of
from wsi_saliency.errors import ModelError, SettingsError
from wsi_saliency.saliency.engine import Explainer, choose_device, eval_mode, explain
from wsi_saliency.saliency.smoothing import smoothed
from wsi_saliency.settings import ATTRIBUTIONS, METHODS

X = torch.randn(2, 3, 67, 65, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def suffix(net, start, activation, target):
    """Logit of the part of a sequence behind a layer."""
    return net[start + 1 :](activation)[:, target].sum().detach()


@pytest.mark.parametrize("start", [0, 1, 3, 5])
def test_gradient_against_finite_differences(start):
    net = random_net()
    maps = explain(net, X, str(start), 1).maps
    activation = net[: start + 1](X).detach()
    rng = np.random.default_rng(0)
    for _ in range(5):
        n, i, j = (int(rng.integers(0, size)) for size in (2, *activation.shape[2:]))
        difference, step = 0.0, 1e-6
        for channel in range(activation.shape[1]):
            for sign in (1, -1):
                moved = activation.clone()
                moved[n, channel, i, j] += sign * step
                difference += sign * float(suffix(net, start, moved, 1)) / (2 * step)
        assert maps[n, i, j] == pytest.approx(difference / activation.shape[1], rel=1e-4, abs=1e-9)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("layer", ["input", "0", "1", "4"])
def test_attributions_against_plain_autograd(method, layer):
    """Without any of the engine's shortcuts: the whole graph is recorded and the layer's output kept."""
    net = random_net()
    kept = []
    with smoothed(net, method):
        x = X.clone().requires_grad_()
        if layer == "input":
            kept.append(x)
        else:
            handle = net[int(layer)].register_forward_hook(lambda m, i, o: kept.append(o))
        y = net(x)[:, 2].sum()
        (g,) = torch.autograd.grad(y, kept[0])
        if layer != "input":
            handle.remove()
        found = {a: explain(net, X, layer, 2, a).maps for a in ATTRIBUTIONS}
    torch.testing.assert_close(found["gradient"], g.mean(1).float())
    torch.testing.assert_close(found["gradient-x-activation"], (g * kept[0]).mean(1).detach().float())


@pytest.mark.parametrize("layer", ["input", "0", "3", "5"])
def test_layers_before_an_inplace_relu(layer):
    torch.testing.assert_close(
        explain(random_net(inplace=True), X, layer, 0).maps, explain(random_net(), X, layer, 0).maps
    )


def test_nothing_below_the_layer_is_recorded_and_no_parameter_gets_a_gradient():
    net = random_net()
    recorded = []
    handles = [m.register_forward_hook(lambda m, i, o: recorded.append(o.requires_grad)) for m in net]
    before = state_of(net)
    explain(net, X, "4", 0)
    assert recorded == [False] * 5 + [True] * 7
    assert_untouched(net, before)
    assert torch.is_grad_enabled()
    for handle in handles:
        handle.remove()


def test_logits_are_those_of_the_model():
    torch.testing.assert_close(explain(random_net(), X, "4", 0).logits, random_net()(X).detach().float())


@pytest.mark.parametrize("broken", ["10", "nosuch"])
def test_nothing_stays_after_an_exception(broken):
    net = random_net()
    before = state_of(net)
    with pytest.raises((ModelError, AttributeError)):
        explain(net, X, broken, 0)
    assert_untouched(net, before)
    assert torch.is_grad_enabled()


def test_eval_mode_gives_every_module_its_own_flag_back():
    net = random_net()
    net[3].train()
    before = state_of(net)
    with eval_mode(net):
        assert not net[3].training
    assert_untouched(net, before)


def patches(n=5, side=64, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (n, side, side, 3), np.uint8)


def explainer(**how):
    return Explainer.of(spot_classifier(64), **{"layer": "8", "device": "cpu"} | how)


def test_explainer_normalises_as_the_classifier_says():
    found = explainer(layer="stage2", method="none")(patches())
    images = 1 - torch.from_numpy(patches()).permute(0, 3, 1, 2).float() / 255
    expected = explain(spot_classifier(64).module, images, "stage2", 1)
    torch.testing.assert_close(found.maps, expected.maps)
    torch.testing.assert_close(found.logits, expected.logits)
    assert found.maps.dtype == torch.float32


def test_batches_do_not_change_the_result_and_two_runs_are_identical():
    one, two = explainer(batch=2)(patches()), explainer(batch=5)(patches())
    torch.testing.assert_close(one.maps, two.maps)
    assert torch.equal(one.maps, explainer(batch=2)(patches()).maps)


def test_model_is_bit_identical_after_explaining():
    e = explainer()
    before = state_of(e.classifier.module)
    e(patches())
    e.drift(patches())
    assert_untouched(e.classifier.module, before)


def test_batch_is_halved_when_it_does_not_fit(monkeypatch):
    e = explainer(batch=4)
    expected = e(patches()).maps
    whole = Explainer._explain

    def small_memory(self, some, method):
        if len(some) > 1:
            raise torch.OutOfMemoryError
        return whole(self, some, method)

    monkeypatch.setattr(Explainer, "_explain", small_memory)
    torch.testing.assert_close(e(patches()).maps, expected)
    assert e.batch == 1


def test_a_patch_that_never_fits_is_reported(monkeypatch):
    def no_memory(self, some, method):
        raise torch.OutOfMemoryError

    monkeypatch.setattr(Explainer, "_explain", no_memory)
    with pytest.raises(ModelError, match="--device cpu"):
        explainer()(patches())


def test_bf16_is_close_to_fp32():
    fp32, bf16 = explainer()(patches()).maps, explainer(precision="bf16")(patches()).maps
    assert bf16.dtype == torch.float32
    assert np.corrcoef(fp32.ravel(), bf16.ravel())[0, 1] > 0.95


@pytest.mark.parametrize("device", ["gpu", "cuda:x", "cuda:99", "tpu"])
def test_unknown_device(device):
    with pytest.raises(SettingsError, match="--device"):
        choose_device(device)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_gives_the_maps_of_the_cpu():
    torch.testing.assert_close(
        explainer(device="cuda")(patches()).maps, explainer()(patches()).maps, rtol=1e-3, atol=1e-6
    )
