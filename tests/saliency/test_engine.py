from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.helpers.nets import random_net, spot_classifier
from tests.helpers.untouched import assert_untouched, state_of
from wsi_saliency.errors import ModelError, SettingsError
from wsi_saliency.saliency.engine import Explainer, choose_device
from wsi_saliency.saliency.network import eval_mode
from wsi_saliency.saliency.patches import explain_patches


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
    return Explainer.of(spot_classifier(64), **{"layers": ["8"], "device": "cpu"} | how)


def the_map(explanation):
    """The one map, of the one target, (N, h, w)."""
    (maps,) = explanation.maps.values()
    return maps[:, 0]


def test_explainer_normalises_as_the_classifier_says():
    found = explainer(layers=["stage2"], methods=["none"], attributions=["gradient"])(patches())
    images = 1 - torch.from_numpy(patches()).permute(0, 3, 1, 2).float() / 255
    module = spot_classifier(64).module
    torch.testing.assert_close(
        the_map(found), explain_patches(module, images, "stage2", 1, "gradient", "none")
    )
    torch.testing.assert_close(found.logits, module(images))
    assert the_map(found).dtype == torch.float32


def test_batches_do_not_change_the_result_and_two_runs_are_identical():
    one, two = explainer(batch=2)(patches()), explainer(batch=5)(patches())
    torch.testing.assert_close(the_map(one), the_map(two))
    assert torch.equal(the_map(one), the_map(explainer(batch=2)(patches())))


def test_model_is_bit_identical_after_explaining():
    e = explainer()
    before = state_of(e.classifier.module)
    e(patches())
    e.drift(patches())
    assert_untouched(e.classifier.module, before)


def test_batch_is_halved_when_it_does_not_fit(monkeypatch):
    e = explainer(batch=4)
    expected = the_map(e(patches()))
    whole = Explainer._explain

    def small_memory(self, some, network):
        if len(some) > 1:
            raise torch.OutOfMemoryError
        return whole(self, some, network)

    monkeypatch.setattr(Explainer, "_explain", small_memory)
    torch.testing.assert_close(the_map(e(patches())), expected)
    assert e.batch == 1


def test_a_patch_that_never_fits_is_reported(monkeypatch):
    def no_memory(self, some, network):
        raise torch.OutOfMemoryError

    monkeypatch.setattr(Explainer, "_explain", no_memory)
    with pytest.raises(ModelError, match="--device cpu"):
        explainer()(patches())


def test_bf16_is_close_to_fp32():
    fp32, bf16 = the_map(explainer()(patches())), the_map(explainer(precision="bf16")(patches()))
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
        the_map(explainer(device="cuda")(patches())), the_map(explainer()(patches())), rtol=1e-3, atol=1e-6
    )
