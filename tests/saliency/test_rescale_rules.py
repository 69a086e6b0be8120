from __future__ import annotations

import pytest
import timm
import torch
from torch import nn
from torchvision import models

from tests.helpers.tokennets import registered_vit, small_swin, small_vit
from wsi_saliency.errors import ModelError
from wsi_saliency.mapspec import MapSpec
from wsi_saliency.saliency.attribution import AttributionInput, Baselines, rescale_multipliers
from wsi_saliency.saliency.patches import explain_patches
from wsi_saliency.saliency.rescale_rules import (
    attention,
    elementwise,
    group_norm,
    matrix_product,
    multi_head_attention,
    norm,
    normalize,
    softmax,
)


def pair(*shape, seed=0, spread=2.0):
    """Some x that depends on nothing, and its baseline, in float64."""
    random = torch.Generator().manual_seed(seed)
    x, x0 = (torch.randn(shape, generator=random, dtype=torch.float64) * spread for _ in range(2))
    return x.requires_grad_(), x0


def sent_back(y, y0, *pairs):
    """What the rule sends to each Δx, of all of Δy weighed at random, and what there was to send."""
    weight = torch.randn(y.shape, generator=torch.Generator().manual_seed(9), dtype=y.dtype)
    multipliers = torch.autograd.grad((y * weight).sum(), [x for x, _ in pairs])
    sent = sum(((x.detach() - x0) * m).sum() for (x, x0), m in zip(pairs, multipliers, strict=True))
    return float(sent), float(((y.detach() - y0) * weight).sum()), multipliers


def test_a_matrix_product_sends_all_of_its_difference():
    (a, a0), (b, b0) = pair(2, 3, 4, 5), pair(2, 3, 5, 6, seed=1)
    y = matrix_product(a, b, a0, b0)
    torch.testing.assert_close(y, a @ b)
    sent, there, (for_a, _) = sent_back(y, a0 @ b0, (a, a0), (b, b0))
    assert sent == pytest.approx(there, rel=1e-12)
    weight = torch.randn(y.shape, generator=torch.Generator().manual_seed(9), dtype=y.dtype)
    slow = torch.einsum("nhij,nhkj->nhik", weight, (b.detach() + b0) / 2)
    torch.testing.assert_close(for_a, slow)


@pytest.mark.parametrize("spread", [1e-7, 0.3, 5.0, 300.0])
@pytest.mark.parametrize("dim", [-1, 1])
def test_softmax_sends_all_of_its_difference(spread, dim):
    x, x0 = pair(2, 6, 7, spread=spread)
    y = softmax(x, x0, dim)
    torch.testing.assert_close(y, x.softmax(dim))
    sent, there, multipliers = sent_back(y, x0.softmax(dim), (x, x0))
    assert sent == pytest.approx(there, rel=1e-9, abs=1e-13)
    assert multipliers[0].isfinite().all()


def test_softmax_is_exp_sum_log_and_exp_each_by_its_rule():
    x, x0 = pair(3, 5)

    def by_definition():
        total = elementwise(torch.exp, x, x0, x0.exp()).sum(-1, keepdim=True)
        total0 = x0.exp().sum(-1, keepdim=True)
        z = x - elementwise(torch.log, total, total0, total0.log())
        z0 = x0 - total0.log()
        return elementwise(torch.exp, z, z0, z0.exp())

    (found,), (slow,) = (
        sent_back(y, x0.softmax(-1), (x, x0))[2] for y in (softmax(x, x0, -1), by_definition())
    )
    torch.testing.assert_close(found, slow)


def test_softmax_of_what_does_not_change_has_its_derivative():
    x, _ = pair(3, 5)
    (found,) = sent_back(softmax(x, x.detach().clone(), -1), 0, (x, x.detach()))[2]
    (slow,) = sent_back(x.softmax(-1), 0, (x, x.detach()))[2]
    torch.testing.assert_close(found, slow)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_softmax_stays_finite_far_away(dtype):
    x = torch.tensor([[500.0, 0.0, -500.0]], dtype=dtype, requires_grad=True)
    x0 = torch.tensor([[-500.0, 0.0, 500.0]], dtype=dtype)
    (found,) = sent_back(softmax(x, x0, -1), x0.softmax(-1), (x, x0))[2]
    assert found.isfinite().all()


MASKS = {
    "none": None,
    "added": torch.randn(6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(3)),
    "window": torch.zeros(6, 6, dtype=torch.float64).masked_fill(torch.eye(6) == 1, -torch.inf),
    "kept": torch.ones(6, 6, dtype=torch.bool).tril(),
}


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("scale", [None, 0.7])
def test_attention_sends_all_of_its_difference(mask, scale):
    pairs = [pair(2, 3, 6, 4, seed=seed) for seed in range(3)]
    now, before = zip(*pairs, strict=True)
    how = {"attn_mask": MASKS[mask], "scale": scale}
    reference = nn.functional.scaled_dot_product_attention
    y = attention(now, before, MASKS[mask], scale)
    torch.testing.assert_close(y, reference(*now, **how))
    sent, there, multipliers = sent_back(y, reference(*before, **how), *pairs)
    assert sent == pytest.approx(there, rel=1e-9)
    assert all(m.isfinite().all() for m in multipliers)


def test_group_norm_sends_all_of_its_difference():
    x, x0 = pair(2, 6, 3, 5)
    weight, bias = torch.randn(2, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    y = group_norm(x, x0, 3, weight, bias, 1e-3)
    torch.testing.assert_close(y, nn.functional.group_norm(x, 3, weight, bias, 1e-3))
    before = nn.functional.group_norm(x0, 3, weight, bias, 1e-3)
    sent, there, _ = sent_back(y, before, (x, x0))
    assert sent == pytest.approx(there, rel=1e-9)


@pytest.mark.parametrize("baseline", ["drawn", "zero", "same"])
@pytest.mark.parametrize("dim", [1, (1, 2), None])
def test_a_norm_sends_all_of_its_difference(dim, baseline):
    x, x0 = pair(2, 6, 7)
    x0 = {"drawn": x0, "zero": torch.zeros_like(x0), "same": x.detach().clone()}[baseline]
    y = norm(x, x0, dim, True)
    torch.testing.assert_close(y, x.norm(p=2, dim=dim, keepdim=True))
    sent, there, multipliers = sent_back(y, x0.norm(p=2, dim=dim, keepdim=True), (x, x0))
    assert sent == pytest.approx(there, rel=1e-6, abs=1e-9)
    assert multipliers[0].isfinite().all()


@pytest.mark.parametrize("zero", [True, False])
def test_normalize_sends_all_of_its_difference(zero):
    x, x0 = pair(2, 6, 7)
    x0 = x0 * (not zero)
    y = normalize(x, x0, dim=-1, eps=1e-3)
    torch.testing.assert_close(y, nn.functional.normalize(x, dim=-1, eps=1e-3))
    sent, there, multipliers = sent_back(y, nn.functional.normalize(x0, dim=-1, eps=1e-3), (x, x0))
    assert sent == pytest.approx(there, rel=1e-6)
    assert multipliers[0].isfinite().all()


@pytest.mark.parametrize("bias", [True, False])
def test_attention_of_several_heads_sends_all_of_its_difference(bias):
    module = nn.MultiheadAttention(8, 2, bias=bias).double().eval().requires_grad_(False)
    pairs = [pair(5, 3, 8, seed=seed) for seed in range(3)]
    now, before = zip(*pairs, strict=True)
    layers = (module.in_proj_weight, module.in_proj_bias), (module.out_proj.weight, module.out_proj.bias)
    y = multi_head_attention(now, before, 2, *layers)
    torch.testing.assert_close(y, module(*now, need_weights=False)[0])
    sent, there, _ = sent_back(y, module(*before, need_weights=False)[0], *pairs)
    assert sent == pytest.approx(there, rel=1e-9)


def torchvisions_vit():
    """One with ``nn.MultiheadAttention``, in float64."""
    torch.manual_seed(0)
    net = models.VisionTransformer(32, 8, 2, 3, 24, 48, num_classes=3)
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.3)
    return net.double().eval()


def named(name, **how):
    """A network of timm in float64, of weights that say something."""
    torch.manual_seed(0)
    net = timm.create_model(name, num_classes=3, **how).double().eval()
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.1)
    return net


SMALL = {
    "torchvision's vit": (torchvisions_vit, "encoder.layers.encoder_layer_0", 32),
    "swinv2": (
        lambda: named("swinv2_tiny_window8_256", img_size=64, embed_dim=12, depths=(1, 1), num_heads=(2, 2)),
        "layers.0",
        64,
    ),
    "convnextv2": (lambda: named("convnextv2_atto", depths=(1,) * 4, dims=(8, 8, 16, 16)), "stages.0", 32),
    "poolformer": (lambda: named("poolformer_s12"), "stages.0", 32),
}


@pytest.mark.parametrize("name", SMALL)
def test_contributions_sum_to_the_difference_of_logits(name):
    make, layer, side = SMALL[name]
    net = make()
    torch.manual_seed(1)
    images = torch.randn(2, 3, side, side, dtype=torch.float64)
    black = torch.zeros_like(images[:1])
    asked = AttributionInput(
        net, [MapSpec(layer, "none", "deeplift")], images, [torch.tensor([1, 1])], Baselines(net, black)
    )
    slopes = rescale_multipliers(asked)
    (_, _, by_layer) = next(slopes.each)
    difference = slopes.activations[layer].detach() - asked.baseline.activation(layer)
    found = (difference * by_layer[layer]).flatten(1).sum(1)
    torch.testing.assert_close(found, (net(images) - net(black))[:, 1], rtol=1e-5, atol=1e-6)


def test_heads_that_give_a_map_of_their_weights_are_refused_by_name():
    class Weighed(nn.Module):
        def __init__(self):
            super().__init__()
            self.proj, self.heads = nn.Conv2d(3, 4, 8, 8), nn.MultiheadAttention(4, 2, batch_first=True)

        def forward(self, x):
            x = self.proj(x).flatten(2).transpose(1, 2)
            return self.heads(x, x, x)[0].mean(1)

    with pytest.raises(ModelError, match=r"no rule for 'multi_head_attention_forward'.*integrated-gradients"):
        explain_patches(Weighed().eval(), torch.randn(1, 3, 32, 32), "proj", 0, "deeplift", "none")


def unfused(make):
    """Let attention be products of matrices and a softmax, as where there is no kernel for it."""
    net = make()
    for module in net.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = False
    return net


NETS = {
    "vit": small_vit,
    "vit, unfused": lambda: unfused(small_vit),
    "registers": registered_vit,
    "swin": small_swin,
    "swin, unfused": lambda: unfused(small_swin),
}


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("at_input", [True, False])
def test_contributions_of_a_transformer_sum_to_the_difference_of_logits(name, at_input):
    """All tokens count, also those that are no cells."""
    net = NETS[name]()
    layer = "input" if at_input else "layers.0" if "swin" in name else "blocks.0"
    torch.manual_seed(1)
    images = torch.randn(2, 3, *net.patch_embed.img_size, dtype=torch.float64)
    baselines = Baselines(net, torch.zeros_like(images[:1]))
    maps = [MapSpec(layer, "none", "deeplift")]
    asked = AttributionInput(net, maps, images, [torch.tensor([1, 1])], baselines)
    slopes = rescale_multipliers(asked)
    (_, _, by_layer) = next(slopes.each)
    difference = slopes.activations[layer].detach() - asked.baseline.activation(layer)
    found = (difference * by_layer[layer]).flatten(1).sum(1)
    expected = (net(images) - net(torch.zeros_like(images[:1])))[:, 1]
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-9)


def test_maps_of_deeplift_are_those_of_the_cells():
    net = small_vit()
    images = torch.randn(2, 3, 32, 48, dtype=torch.float64)
    found = explain_patches(net, images, "blocks.1", 1, "deeplift", "none", reduce=None)
    assert found.shape == (2, 24, 4, 6)
    for i in range(2):  # with a baseline of one image, each image for itself
        alone = explain_patches(net, images[i : i + 1], "blocks.1", 1, "deeplift", "none", reduce=None)
        torch.testing.assert_close(found[i : i + 1], alone)


def test_attention_of_a_kind_without_a_rule_is_refused_by_name():
    class Causal(nn.Module):
        def __init__(self):
            super().__init__()
            self.proj = nn.Conv2d(3, 4, 8, 8)

        def forward(self, x):
            x = self.proj(x).flatten(2).transpose(1, 2)
            return nn.functional.scaled_dot_product_attention(x, x, x, is_causal=True).mean(1)

    with pytest.raises(ModelError, match=r"no rule for 'scaled_dot_product_attention'.*integrated-gradients"):
        explain_patches(Causal().eval(), torch.randn(1, 3, 32, 32), "proj", 0, "deeplift", "none")
