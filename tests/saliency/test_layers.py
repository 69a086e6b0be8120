from __future__ import annotations

import pytest
import timm
import torch
from torch import nn

from tests.helpers.nets import SpotNet, random_net
from wsi_saliency.errors import ModelError
from wsi_saliency.saliency.layers import (
    Stage,
    explainable_stages,
    feature_stages,
    find_layer,
    measure,
    note_on_other_stages,
    strided_convolutions,
    total_stride,
)

IMAGES = torch.zeros(1, 3, 224, 224)


def centre_of_mass(model, layer, side=96, cell=5):
    """Measure where a cell lies: the centre of mass of its gradient at the input, in float64."""
    x = torch.ones(1, 3, side, side, dtype=torch.float64, requires_grad=True)
    found = []
    handle = model.get_submodule(layer).register_forward_hook(lambda m, i, o: found.append(o))
    model(x)
    handle.remove()
    (g,) = torch.autograd.grad(found[0][0, :, cell, cell].sum(), x)
    weight = g.abs().sum((0, 1))
    pixels = torch.arange(side, dtype=torch.float64) + 0.5
    return float((weight.sum(0) * pixels).sum() / weight.sum()), float(
        (weight.sum(1) * pixels).sum() / weight.sum()
    )


def uniform(model):
    """Give every convolution a uniform kernel, so that the centre of mass is the geometric centre."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.constant_(module.weight, 1 / module.weight[0].numel())
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    return model.double().eval()


def sequence(*modules):
    return uniform(nn.Sequential(*modules, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.LazyLinear(2)))


class SamePad(nn.Module):
    """A stride-2 convolution with TensorFlow's asymmetric padding."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, 2)

    def forward(self, x):
        return self.conv(nn.functional.pad(x, (0, 1, 0, 1)))


class EveryOther(nn.Module):
    def forward(self, x):
        return x[:, :, 1::2, 1::2]


NETS = {
    "symmetric": lambda: sequence(nn.Conv2d(3, 4, 3, 2, 1), nn.ReLU(), nn.Conv2d(4, 4, 5, 2, 2)),
    "valid": lambda: sequence(nn.Conv2d(3, 4, 3, 2), nn.Conv2d(4, 4, 3)),
    "patchify": lambda: sequence(nn.Conv2d(3, 4, 4, 4), nn.Conv2d(4, 4, 2, 2)),
    "dilated": lambda: sequence(nn.Conv2d(3, 4, 3, 2, 4, dilation=2)),
    "same": lambda: sequence(SamePad(), nn.Conv2d(4, 4, 3, 2, 1)),
    "average pooling": lambda: sequence(
        nn.Conv2d(3, 4, 3, padding=1), nn.AvgPool2d(2), nn.AvgPool2d(3, 2, 1)
    ),
    "reflect": lambda: sequence(nn.ReflectionPad2d((2, 0, 2, 0)), nn.Conv2d(3, 4, 3, 2)),
    "circular": lambda: sequence(nn.Conv2d(3, 4, 3, 2, 1, padding_mode="circular")),
    "slice": lambda: sequence(nn.Conv2d(3, 4, 3, padding=1), EveryOther()),
    "transposed": lambda: sequence(nn.Conv2d(3, 4, 3, 4, 1), nn.ConvTranspose2d(4, 4, 2, 2)),
    "upsampled": lambda: sequence(nn.Conv2d(3, 4, 3, 4, 1), nn.Upsample(scale_factor=2)),
}


@pytest.mark.parametrize("name", NETS)
def test_cells_lie_where_their_centre_of_mass_is(name):
    net = NETS[name]()
    x = torch.ones(1, 3, 96, 96, dtype=torch.float64)
    net(x)
    layer = str(len(net) - 4)
    geometry = measure(net, layer, x)
    for cell in (5, 8):
        found_x, found_y = centre_of_mass(net, layer, cell=cell)
        # an even upsampling repeats one cell: the middle of the pair is what is measured
        slack = geometry.reduction / 2 if name in ("upsampled", "transposed") else 1e-6
        assert found_x == pytest.approx(geometry.centre_x + cell * geometry.reduction, abs=slack)
        assert found_y == pytest.approx(geometry.centre_y + cell * geometry.reduction, abs=slack)


@pytest.mark.parametrize(
    ("name", "layer", "reduction", "centre", "drift"),
    [
        ("resnet18", "layer2", 8, 0.5, 12),  # 0.5 cells of 8 px + 0.5 of 16
        ("resnet18", "layer4", 32, 0.5, 0),
        ("convnext_atto", "stages.0", 4, 2.0, 14),  # a 4×4 patch: centre 2; (2-1)/2 · (4 + 8 + 16)
        ("tf_efficientnet_lite0", "blocks.2", 8, 7.5, 12),  # one pixel of asymmetric padding a stage
        ("vgg11", "features.10", 8, 4.0, 0),
        ("densenet121", "features.denseblock2", 8, 2.5, 0),
    ],
)
def test_geometry_of_known_networks(name, layer, reduction, centre, drift):
    geometry = measure(timm.create_model(name).eval(), layer, IMAGES)
    assert (geometry.reduction, geometry.centre_x, geometry.drift_x) == (reduction, centre, drift)
    assert (geometry.centre_y, geometry.drift_y) == (centre, drift)
    assert geometry.cell_w == geometry.cell_h == 224 // reduction


def test_drift_at_the_input_counts_the_stem():
    assert measure(SpotNet().eval(), "input", torch.zeros(1, 3, 64, 64)).drift_x == 0.5 * (1 + 2 + 4 + 8 + 16)


def test_layers_by_name_reduction_module_and_input():
    net = timm.create_model("resnet18").eval()
    assert find_layer(net, "layer2.0.conv1", IMAGES) == "layer2.0.conv1"
    assert find_layer(net, "8", IMAGES) == find_layer(net, 8, IMAGES) == "layer2"
    assert find_layer(net, net.layer3, IMAGES) == "layer3"
    assert find_layer(net, "input", IMAGES) == "input"


def test_stages_of_a_network_that_does_not_name_them():
    names = {
        stage.reduction: stage.name for stage in feature_stages(SpotNet().eval(), torch.zeros(1, 3, 64, 64))
    }
    assert names == {2: "stage1", 4: "stage2", 8: "stage3", 16: "stage4", 32: "stage5"}


@pytest.mark.parametrize("layer", ["nosuch", "7", "", "layer9"])
def test_unknown_layer_lists_the_layers(layer):
    with pytest.raises(ModelError, match=r"layer2 \(1/8\)"):
        find_layer(timm.create_model("resnet18").eval(), layer, IMAGES)


@pytest.mark.parametrize(
    ("layer", "message"),
    [("global_pool", "no spatial grid"), ("fc", "no spatial grid"), ("spare", "not called")],
)
def test_layers_that_cannot_be_explained(layer, message):
    net = timm.create_model("resnet18").eval()
    net.spare = nn.Conv2d(3, 3, 1)
    with pytest.raises(ModelError, match=message):
        measure(net, layer, IMAGES)
    assert not any(module._forward_hooks for module in net.modules())


def test_layer_called_twice_is_refused():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 3, padding=1)

        def forward(self, x):
            return self.conv(self.conv(x)).mean((2, 3))

    with pytest.raises(ModelError, match="more than once"):
        measure(Twice(), "conv", IMAGES)


def test_strided_convolutions_include_shortcuts():
    names = list(strided_convolutions(timm.create_model("resnet18")))
    assert names[0] == "conv1"
    assert "layer2.0.downsample.0" in names
    assert len(names) == 7


def test_a_number_is_a_reduction_even_where_a_module_is_called_so():
    net, x = random_net(), torch.zeros(1, 3, 64, 64, dtype=torch.float64)
    assert find_layer(net, "8", x) == "8"
    assert find_layer(net, 8, x) == "6"


def test_a_number_without_a_stage_is_called_a_reduction():
    with pytest.raises(ModelError) as caught:
        find_layer(SpotNet().eval(), "64", torch.zeros(1, 3, 64, 64))
    assert "no stage of the model lies at 1/64" in str(caught.value)
    assert "(64 is a reduction)" in str(caught.value)
    assert "stage3 (1/8)" in str(caught.value)


@pytest.mark.parametrize(
    "architecture", ["resnet18", "densenet121", "convnext_atto", "tf_efficientnet_lite0"]
)
def test_all_stages_of_a_convolutional_network_are_explainable(architecture):
    net = timm.create_model(architecture).eval()
    stages = explainable_stages(net, IMAGES)
    assert stages == feature_stages(net, IMAGES)
    assert note_on_other_stages(net, stages) == []
    assert not any(module._forward_hooks for module in net.modules())


def test_a_stage_that_is_called_twice_is_not_explainable():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = nn.Conv2d(3, 3, 3, 2, 1)
            self.again = nn.Conv2d(3, 3, 3, padding=1)

        def forward(self, x):
            return self.again(self.again(self.first(x))).mean((2, 3))

    assert explainable_stages(Twice().eval(), torch.zeros(1, 3, 32, 32)) == [Stage("first", 2)]


@pytest.mark.parametrize("architecture", ["resnet18", "convnext_atto"])
def test_the_total_stride_of_a_network_is_that_of_its_deepest_grid(architecture):
    net = timm.create_model(architecture).eval()
    assert total_stride(net, IMAGES) == 32
    for stage in explainable_stages(net, IMAGES)[:2]:
        assert measure(net, stage.name, IMAGES).total_stride == 32


TOTAL = {
    "none": (lambda: sequence(nn.Conv2d(3, 4, 3, padding=1)), 1),
    "strides multiply": (lambda: sequence(nn.Conv2d(3, 4, 3, 2, 1), nn.MaxPool2d(3, 3)), 6),
    "pooling to a single cell is none": (lambda: sequence(nn.Conv2d(3, 4, 4, 4), nn.AvgPool2d(24)), 4),
    "back up": (lambda: sequence(nn.Conv2d(3, 4, 4, 4), nn.ConvTranspose2d(4, 4, 2, 2)), 4),
    "slices": (lambda: sequence(nn.Conv2d(3, 4, 3, 2, 1), EveryOther()), 4),
}


@pytest.mark.parametrize("name", TOTAL)
def test_the_total_stride_is_the_move_after_which_all_cells_have_moved_as_well(name):
    make, stride = TOTAL[name]
    net = make()
    assert total_stride(net, torch.zeros(1, 3, 96, 96, dtype=torch.float64)) == stride


def test_branches_of_different_strides_have_their_least_common_multiple():
    class Branches(nn.Module):
        def __init__(self):
            super().__init__()
            self.two, self.three = nn.Conv2d(3, 1, 2, 2), nn.Conv2d(3, 1, 3, 3)

        def forward(self, x):
            return torch.stack([self.two(x).mean((1, 2, 3)), self.three(x).mean((1, 2, 3))], 1)

    assert total_stride(Branches().eval(), torch.zeros(1, 3, 48, 48)) == 6
