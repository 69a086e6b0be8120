from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.helpers.nets import random_net, spot_classifier
from tests.helpers.untouched import assert_untouched, state_of
from wsi_saliency.errors import ModelError, SettingsError
from wsi_saliency.mapspec import MapSpec
from wsi_saliency.saliency.engine import Explainer, choose_device, resolve_maps
from wsi_saliency.saliency.network import eval_mode
from wsi_saliency.saliency.patches import explain_patches
from wsi_saliency.saliency.smoothing import smoothed


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


# ----------------------------------------------------------------------------------------- many maps


def resolved(**how):
    module = spot_classifier(64).module
    return resolve_maps(module, torch.zeros(1, 3, 64, 64), **how)


def test_layers_methods_and_attributions_are_combined_each_once():
    found = resolved(
        layers=["8", "stage3", "last"],
        methods=["none", "centred-hook"],
        attributions=["gradient", "deeplift"],
    )
    assert found == {
        MapSpec(layer, method, attribution): asked
        for layer, asked in (("stage3", ("8", "stage3")), ("stage5", ("last",)))
        for attribution in ("gradient", "deeplift")
        for method in ("none", "centred-hook")
    }


def test_without_a_layer_each_attribution_has_its_own():
    found = resolved(methods=["none"], attributions=["deeplift", "gradcam"])
    assert found == {
        MapSpec("stage4", "none", "deeplift"): ("16",),
        MapSpec("stage5", "none", "gradcam"): ("last",),
    }


def test_maps_have_a_channel_for_each_target():
    how = {
        "layers": ["4", "8"],
        "methods": ["none", "forward-hook"],
        "attributions": ["gradient-x-activation"],
    }
    both = explainer(targets=["all"], **how)
    assert (both.targets, both.target_names) == ((0, 1), ("normal", "tumour"))
    found = both(patches())
    assert [maps.shape for maps in found.maps.values()] == [(5, 2, 16, 16)] * 2 + [(5, 2, 8, 8)] * 2
    for number, name in enumerate(both.target_names):
        alone = explainer(targets=[name], **how)(patches())
        assert alone.maps.keys() == found.maps.keys()
        for spec, maps in alone.maps.items():
            assert torch.equal(maps[:, 0], found.maps[spec][:, number])


@pytest.mark.parametrize(
    ("targets", "indices"),
    [((), (1,)), (("all",), (0, 1)), (("tumour", "0"), (1, 0)), (("1", " Tumour ", "tumour"), (1,))],
)
def test_targets_are_taken_each_once(targets, indices):
    assert explainer(targets=targets).targets == indices


def test_logits_are_those_of_the_classifier_as_it_is_if_a_method_leaves_it_so():
    module, images = spot_classifier(64).module, 1 - torch.from_numpy(patches()).permute(0, 3, 1, 2) / 255
    with smoothed(module, "forward-hook"):
        changed = module(images)
    assert not torch.allclose(changed, module(images))
    for methods, expected in (
        (["forward-hook", "none"], module(images)),
        (["forward-hook", "centred-hook"], module(images)),
        (["forward-hook"], changed),
    ):
        torch.testing.assert_close(explainer(methods=methods)(patches()).logits, expected)


def test_only_the_maps_that_are_named_are_made():
    e = explainer(layers=["4", "8"])
    found = e(patches(), e.maps[1:])
    assert set(found.maps) == set(e.maps[1:])
    assert torch.equal(found.maps[e.maps[1]], e(patches()).maps[e.maps[1]])


def test_batch_is_halved_for_all_maps_together(monkeypatch):
    e = explainer(layers=["4", "8"], targets=["all"], batch=4)
    expected, whole = e(patches()), Explainer._explain

    def small_memory(self, some, maps):
        if len(some) > 2:
            raise torch.OutOfMemoryError
        return whole(self, some, maps)

    monkeypatch.setattr(Explainer, "_explain", small_memory)
    found = e(patches())
    for spec, maps in expected.maps.items():
        torch.testing.assert_close(found.maps[spec], maps)
    assert e.batch == 2


def test_a_layer_that_is_not_there_is_refused_among_others():
    with pytest.raises(ModelError, match="nix"):
        explainer(layers=["8", "nix"])


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
