from __future__ import annotations

from itertools import product

import pytest
import timm
import torch
from torch import nn

from tests.helpers.tokennets import SpotTokens, registered_vit, small_swin, small_vit
from wsi_saliency.errors import ModelError
from wsi_saliency.saliency.layers import (
    explainable_stages,
    feature_stages,
    find_layer,
    layout_of,
    measure,
    note_on_other_stages,
    total_stride,
)
from wsi_saliency.saliency.patches import explain_patches
from wsi_saliency.saliency.places import PlaceFlow, Places
from wsi_saliency.saliency.tokens import Layout

H, W, C = 4, 6, 5


def cells(n: int = 2) -> torch.Tensor:
    """(N, C, h, w) of which every value is another."""
    return torch.arange(n * C * H * W, dtype=torch.float64).reshape(n, C, H, W)


def with_others(tokens, before=0, after=0):
    blank = torch.full((len(tokens), 1, tokens.shape[2]), -1.0, dtype=tokens.dtype)
    return torch.cat([blank.expand(-1, before, -1), tokens, blank.expand(-1, after, -1)], 1)


LAYOUTS = {
    "channels first": (Layout((H, W)), lambda x: x),
    "channels last": (Layout((H, W), (1, 2)), lambda x: x.permute(0, 2, 3, 1)),
    "tokens": (Layout((H, W), (1,)), lambda x: x.flatten(2).transpose(1, 2)),
    "flat": (Layout((H, W), (2,)), lambda x: x.flatten(2)),
    "tokens among others": (
        Layout((H, W), (1,), 2, 1),
        lambda x: with_others(x.flatten(2).transpose(1, 2), 2, 1),
    ),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_layout_gives_the_grid_back(name):
    layout, laid = LAYOUTS[name]
    assert layout.is_of(laid(cells()))
    assert torch.equal(layout.grid(laid(cells())), cells())


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_flow_finds_every_layout(name):
    """Each cell's number travels with it: the layout that the flow names has to find all of them again."""
    layout, laid = LAYOUTS[name]
    found, _ = followed(laid)
    assert found == layout


def followed(operations, x=None):
    """Layout of what operations make of an image, and the image itself."""
    x = cells(1) if x is None else x
    flow = PlaceFlow()
    with flow:
        flow.start(x, Places.of_input(x))
        y = operations(x)
    return flow.places_of(y).layout, y


def heads(x):
    """Split channels into heads and join them again, as attention does, around a product of matrices."""
    n, tokens, c = x.shape
    q = x.reshape(n, tokens, 5, c // 5).permute(0, 2, 1, 3)
    mixed = torch.nn.functional.scaled_dot_product_attention(q, q, q)
    return mixed.transpose(1, 2).reshape(n, tokens, c)


def windows(x):
    """Partition (N, h, w, C) into windows of 2 × 2 cells and join them again."""
    n, h, w, c = x.shape
    parts = x.view(n, h // 2, 2, w // 2, 2, c).permute(0, 1, 3, 2, 4, 5).reshape(-1, 4, c) * 2
    return parts.view(n, h // 2, w // 2, 2, 2, c).permute(0, 1, 3, 2, 4, 5).reshape(n, h, w, c)


WAYS = {
    "heads": (lambda x: heads(x.flatten(2).transpose(1, 2)), Layout((H, W), (1,))),
    "linear": (
        lambda x: nn.functional.linear(x.flatten(2).transpose(1, 2), torch.ones(H * W, C).double()),
        Layout((H, W), (1,)),  # as many channels as tokens
    ),
    "tokens mixed": (
        lambda x: torch.ones(1, H * W, H * W).double() @ x.flatten(2).transpose(1, 2),
        Layout((H, W), (1,)),
    ),
    "others cut off": (
        lambda x: with_others(x.flatten(2).transpose(1, 2), 3)[:, 1:],
        Layout((H, W), (1,), 2),
    ),
    "class token alone, and back": (
        lambda x: with_others(with_others(x.flatten(2).transpose(1, 2), 1)[:, 1:] + 1, 4, 2),
        Layout((H, W), (1,), 4, 2),
    ),
    "padded": (lambda x: nn.functional.pad(x.flatten(2), (2, 1)), Layout((H, W), (2,), 2, 1)),
    "windows": (lambda x: windows(x.permute(0, 2, 3, 1)), Layout((H, W), (1, 2))),
    "apart": (lambda x: x.flatten(2).transpose(1, 2).reshape(1, H, W, C), Layout((H, W), (1, 2))),
    "rolled": (lambda x: x.permute(0, 2, 3, 1).roll((1, 2), (1, 2)), Layout((H, W), (1, 2))),
}


@pytest.mark.parametrize("name", WAYS)
def test_a_flow_follows_what_networks_do_to_tokens(name):
    operations, layout = WAYS[name]
    assert followed(operations)[0] == layout


def test_a_cube_is_told_apart_by_its_way():
    """With as many channels as rows and columns, the shape alone says nothing."""
    x = torch.zeros(1, 4, 4, 4)
    assert followed(lambda x: x * 2, x)[0].axes == (2, 3)
    assert followed(lambda x: x.permute(0, 2, 3, 1) * 2, x)[0].axes == (1, 2)


@pytest.mark.parametrize("merge", ["slices", "view"])
def test_merged_patches_lie_in_the_middle_of_what_was_merged(merge):
    def slices(x):
        x = x.permute(0, 2, 3, 1)
        return torch.cat([x[:, a::2, b::2] for a, b in product((0, 1), (0, 1))], -1)

    def view(x):
        return x.permute(0, 2, 3, 1).view(1, 2, 2, 3, 2, 5).permute(0, 1, 3, 2, 4, 5).flatten(3)

    x = cells(1)
    flow = PlaceFlow()
    with flow:
        flow.start(x, Places.of_input(x))
        y = {"slices": slices, "view": view}[merge](x)
    places = flow.places_of(y)
    assert places.layout == Layout((2, 3), (1, 2))
    assert (places.centre, places.jump) == ((1.0, 1.0), (2.0, 2.0))


def test_tokens_in_another_order_are_refused():
    net, image = SpotTokens(scrambled=True).eval(), torch.ones(1, 3, 32, 48)
    with pytest.raises(ModelError, match=r"'block', \(1, 26, 4\).*order that is not known.*--layer"):
        measure(net, "block", image)
    assert "block" not in [stage.name for stage in explainable_stages(net, image)]


# --- geometry ---


@pytest.mark.parametrize(("others", "last"), [(0, 0), (1, 0), (5, 0), (0, 2), (3, 1)])
def test_a_spot_is_found_in_the_cell_that_it_was_planted_in(others, last):
    net = SpotTokens(8, others, last=last).eval()
    for row, column in ((0, 0), (1, 4), (3, 5)):
        image = torch.ones(1, 3, 32, 48)
        image[:, :, 8 * row + 2 : 8 * row + 6, 8 * column + 2 : 8 * column + 6] = 0
        for attribution in ("gradient", "gradient-x-activation", "integrated-gradients"):
            found = explain_patches(
                net, image, "block", 0, attribution, "none", baseline=torch.ones(3, 32, 48)
            )
            assert divmod(int(found[0].argmax()), 6) == (row, column)
    g = measure(net, "block", image)
    assert (g.reduction, g.centre_x, g.centre_y, g.cell_w, g.cell_h) == (8, 4.0, 4.0, 6, 4)


@pytest.mark.parametrize(
    ("make", "layer", "reduction", "channels"),
    [
        (small_vit, "blocks.1", 8, 24),
        (small_vit, "blocks.0.mlp.fc1", 8, 96),
        (registered_vit, "blocks.1", 7, 24),
        (small_swin, "layers.0", 4, 8),
        (small_swin, "layers.1", 8, 16),
        (small_swin, "layers.1.blocks.0.norm1", 8, 16),
    ],
)
def test_geometry_of_patch_embeddings(make, layer, reduction, channels):
    net = make()
    image = image_for(net)
    g = measure(net, layer, image)
    h, w = image.shape[2] // reduction, image.shape[3] // reduction
    assert (g.reduction, g.channels, g.cell_h, g.cell_w) == (reduction, channels, h, w)
    assert (g.centre_x, g.centre_y) == (reduction / 2, reduction / 2)
    assert g.strided_behind == ()


def image_for(net, n: int = 1):
    torch.manual_seed(1)
    return torch.randn(n, 3, *net.patch_embed.img_size, dtype=torch.float64)


def test_stages_of_a_vision_transformer():
    net = small_vit()
    image = image_for(net)
    stages = explainable_stages(net, image)
    assert [(s.name, s.reduction) for s in stages] == [("blocks.0", 8), ("blocks.1", 8)]
    assert len(feature_stages(net, image)) == 3
    assert find_layer(net, "last", image) == find_layer(net, 8, image) == "blocks.1"
    assert find_layer(net, "blocks.2", image) == "blocks.2"
    (note,) = note_on_other_stages(net, stages)
    assert note.startswith("blocks.2: no grid of cells")
    with pytest.raises(ModelError, match=r"\(16 is a reduction\).*blocks.0 \(1/8\)"):
        find_layer(net, 16, image)
    assert total_stride(net, image) == 8


def test_the_last_block_counts_where_all_tokens_are_averaged():
    net = small_vit(global_pool="avg")
    assert find_layer(net, "last", image_for(net)) == "blocks.2"


def test_cells_that_the_answer_does_not_depend_on_are_refused():
    net = small_vit()
    with pytest.raises(ModelError, match=r"do not depend on the cells.* of layer 'blocks.2'.*--layer"):
        explain_patches(net, image_for(net), "blocks.2", 0, "gradient", "none")


def test_stages_of_a_swin_transformer():
    net = small_swin()
    stages = explainable_stages(net, image_for(net))
    assert [(s.name, s.reduction) for s in stages] == [("layers.0", 4), ("layers.1", 8)]
    assert note_on_other_stages(net, stages) == []


def test_a_window_of_tokens_has_no_grid():
    net = small_swin()
    with pytest.raises(ModelError, match="no spatial grid"):
        measure(net, "layers.0.blocks.0.attn.proj", image_for(net))


def test_a_multi_axis_transformer_lies_where_its_convolutions_put_it():
    net = timm.create_model(
        "maxvit_tiny_tf_224", num_classes=2, img_size=64, depths=(1, 1), embed_dim=(32, 32)
    )
    image = torch.zeros(1, 3, 64, 64)
    centres = {
        s.reduction: measure(net.eval(), s.name, image).centre_x for s in explainable_stages(net, image)
    }
    assert centres == {2: 1.5, 4: 3.0, 8: 6.0}  # "same" padding is asymmetric, average pooling is not
    assert total_stride(net, image) == 8


# --- attributions ---


def plain_gradient(net, layer, images, target):
    """Activation and gradient as the layer gives them, by nothing but autograd."""
    kept = []

    def hook(module, args, output):
        kept.append(output.detach().requires_grad_())
        return kept[0]

    handle = net.get_submodule(layer).register_forward_hook(hook)
    logits = net(images)
    handle.remove()
    (gradient,) = torch.autograd.grad(logits[:, target].sum(), kept)
    return kept[0].detach(), gradient


def by_hand(values, net, shape):
    """(N, C, h, w) of a layer's output, cell by cell."""
    n, _, h, w = shape
    grid = torch.zeros(shape, dtype=values.dtype)
    for y, x in product(range(h), range(w)):
        cell = values[:, y, x] if values.ndim == 4 else values[:, net.num_prefix_tokens + y * w + x]
        grid[:, :, y, x] = cell.reshape(n, -1)
    return grid


SUBJECTS = [
    (small_vit, "blocks.1"),
    (small_vit, "blocks.2.norm1"),
    (registered_vit, "blocks.1"),
    (registered_vit, "blocks.0.mlp.fc1"),
    (small_swin, "layers.0"),
    (small_swin, "layers.1"),
]


@pytest.mark.parametrize(("make", "layer"), SUBJECTS)
@pytest.mark.parametrize("attribution", ["gradient", "gradient-x-activation", "gradcam"])
def test_maps_of_tokens_are_those_of_plain_autograd(make, layer, attribution):
    net = make()
    images = image_for(net, 2)
    found = explain_patches(net, images, layer, 1, attribution, "none", reduce=None)
    activation, gradient = (by_hand(v, net, found.shape) for v in plain_gradient(net, layer, images, 1))
    expected = {
        "gradient": gradient,
        "gradient-x-activation": activation * gradient,
        "gradcam": activation * gradient.mean((2, 3), keepdim=True),
    }[attribution]
    torch.testing.assert_close(found, expected.float(), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(("make", "layer"), SUBJECTS)
def test_integrated_gradients_of_tokens_follow_all_tokens(make, layer):
    net, steps = make(), 3
    images = image_for(net, 2)
    found = explain_patches(net, images, layer, 1, "integrated-gradients", "none", reduce=None, steps=steps)
    activation, _ = plain_gradient(net, layer, images, 1)
    start, _ = plain_gradient(net, layer, torch.zeros_like(images[:1]), 1)
    total = torch.zeros_like(activation)
    nodes = {
        0.5 - 0.15**0.5: 5 / 18,
        0.5: 4 / 9,
        0.5 + 0.15**0.5: 5 / 18,
    }  # Gauss–Legendre, 3 nodes on [0, 1]
    for node, weight in nodes.items():
        point = (start + node * (activation - start)).requires_grad_()
        handle = net.get_submodule(layer).register_forward_hook(lambda m, a, o, point=point: point)
        logits = net(images)
        handle.remove()
        total += weight * torch.autograd.grad(logits[:, 1].sum(), point)[0]
    expected = by_hand((activation - start) * total, net, found.shape)
    torch.testing.assert_close(found, expected.float(), rtol=1e-5, atol=1e-7)


def test_layouts_of_known_networks():
    assert layout_of(small_vit(), "blocks.0", image_for(small_vit())) == Layout((4, 6), (1,), before=1)
    assert layout_of(registered_vit(), "blocks.0", image_for(registered_vit())) == Layout(
        (4, 6), (1,), before=5
    )
    assert layout_of(small_swin(), "layers.0", image_for(small_swin())) == Layout((16, 24), (1, 2))
