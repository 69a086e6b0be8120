from __future__ import annotations

import copy
import pickle
import threading

import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save_file
from timm.layers import Conv2dSame
from torch import nn

from tests.helpers.convolutions import CONVOLUTIONS
from tests.helpers.nets import random_net, untrained
from tests.helpers.untouched import assert_untouched, state_of
from wsi_saliency.errors import ModelError, OutputError
from wsi_saliency.models.loading import load_classifier
from wsi_saliency.saliency.layers import strided_convolutions
from wsi_saliency.saliency.surrogate import (
    Scores,
    Surrogate,
    hash_of,
    is_installed,
    replaceable,
    surrogate_for,
)
from wsi_saliency.saliency.surrogate_conv import SurrogateConv, output_size


def images(*shape, dtype=torch.float64):
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(1))


def reference(layer, x, size):
    """The definition of a layer without groups, its resize pixel by pixel."""
    y = F.conv2d(x, layer.first.weight, layer.first.bias, padding=1)
    out = y.new_zeros(*y.shape[:2], *size)
    for i in range(size[0]):
        for j in range(size[1]):
            ((r, r2, a), (c, c2, b)) = (
                _between(k, n, m) for k, n, m in ((i, y.shape[2], size[0]), (j, y.shape[3], size[1]))
            )
            upper = y[:, :, r, c] * (1 - b) + y[:, :, r, c2] * b
            lower = y[:, :, r2, c] * (1 - b) + y[:, :, r2, c2] * b
            out[:, :, i, j] = upper * (1 - a) + lower * a
    return F.conv2d(out, layer.second.weight, layer.second.bias, padding=1)


def _between(k, n, m):
    """Two pixels of n around the middle of pixel k of m, and how near the second is."""
    place = max((k + 0.5) * n / m - 0.5, 0)
    low = int(place)
    return low, min(low + 1, n - 1), place - low


@pytest.mark.parametrize("size", [(8, 8), (9, 13), (7, 10)])
@pytest.mark.parametrize(("kernel", "stride"), [(1, 2), (2, 2), (3, 2), (5, 2), (7, 4)])
def test_layer_is_convolution_resize_convolution_at_the_size_of_the_original(kernel, stride, size):
    torch.manual_seed(0)
    convolution = nn.Conv2d(3, 5, kernel, stride, kernel // 2).double()
    layer, x = SurrogateConv(3, 5).double(), images(2, 3, *size)
    expected = convolution(x).shape
    assert output_size(convolution, *size) == tuple(expected[2:])
    y = layer(x, output_size(convolution, *size))
    assert y.shape == expected
    torch.testing.assert_close(y, reference(layer, x, tuple(expected[2:])))


@pytest.mark.parametrize("how", CONVOLUTIONS.values(), ids=CONVOLUTIONS.keys())
def test_output_size_of_every_kind_of_convolution(how):
    convolution = nn.Conv2d(4, 8, **how)
    for h, w in ((16, 16), (17, 23)):
        assert output_size(convolution, h, w) == tuple(convolution(torch.zeros(1, 4, h, w)).shape[2:])


def test_output_size_of_same_padding():
    convolution = next(iter(strided_convolutions(timm.create_model("tf_efficientnet_b0")).values()))
    assert [output_size(convolution, n, n + 1) for n in (32, 33)] == [(16, 17), (17, 17)]


COVERED = [
    (1, 2, 0, 1),
    (2, 2, 0, 1),
    (3, 2, 1, 1),
    (3, 2, 1, 2),
    (3, 2, 1, 4),
    (4, 2, 1, 1),
    (4, 4, 0, 1),
    (3, 1, 1, 2),
]


@pytest.mark.parametrize(("kernel", "stride", "padding", "groups"), COVERED)
def test_starts_near_an_original_whose_kernel_it_covers(kernel, stride, padding, groups):
    torch.manual_seed(0)
    convolution = nn.Conv2d(4, 8, kernel, stride, padding, groups=groups).double()
    nn.init.uniform_(convolution.weight)  # weights that do not cancel
    x = F.interpolate(images(1, 4, 6, 6), (48, 48), mode="bicubic")
    with torch.no_grad():
        y = convolution(x)
        z = SurrogateConv.like(convolution)(x, tuple(y.shape[2:]))
    inside = (..., slice(2, -2), slice(2, -2))
    assert (z - y)[inside].abs().mean() < 0.08 * y[inside].abs().mean()


@pytest.mark.parametrize("how", CONVOLUTIONS.values(), ids=CONVOLUTIONS.keys())
def test_every_kind_of_convolution_has_a_start(how):
    layer = SurrogateConv.like(nn.Conv2d(4, 8, **how).double())
    assert layer.shape == (4, 8, how.get("groups", 1))
    assert 0 < layer.first.weight.abs().max() < 10
    y = images(1, 8, 5, 5)
    torch.testing.assert_close(layer.second(y), y)


def test_start_is_exact_where_a_resize_can_do_the_same():
    """The mean of two by two pixels is what the resize does by itself; of a 4×4 stride, it is the middle."""
    for kernel, stride, middle in ((2, 2, slice(None)), (4, 4, slice(1, 3))):
        convolution = nn.Conv2d(1, 1, kernel, stride).double()
        nn.init.zeros_(convolution.weight)
        convolution.weight.data[:, :, middle, middle] = 0.25
        x = images(1, 1, 16, 16)
        y = convolution(x)
        torch.testing.assert_close(SurrogateConv.like(convolution)(x, (y.shape[2], y.shape[3])), y)


def test_groups_stay_apart():
    torch.manual_seed(0)
    convolution = nn.Conv2d(6, 4, 3, 2, 1, groups=2).double()
    layer, x = SurrogateConv.like(convolution), images(1, 6, 9, 9)
    assert layer.shape == (6, 4, 2)
    nn.init.normal_(layer.second.weight)
    changed = x.clone()
    changed[:, 3:] += 1
    before, after = (layer(each, (5, 5)) for each in (x, changed))
    assert torch.equal(before[:, :2], after[:, :2])
    assert not torch.isclose(before[:, 2:], after[:, 2:]).any()


def test_start_of_same_padding_lies_where_the_original_does():
    """timm's convolutions that pad by themselves: a lone 1 in the kernel is seen in its place."""
    convolution = Conv2dSame(1, 1, 5, 2, bias=False).double()
    x = F.interpolate(images(1, 1, 8, 8), (64, 64), mode="bicubic")
    for place in (1, 2, 3):
        nn.init.zeros_(convolution.weight)
        convolution.weight.data[0, 0, place, place] = 1
        with torch.no_grad():
            y, z = convolution(x), SurrogateConv.like(convolution)(x, (32, 32))
        assert (z - y)[..., 2:-2, 2:-2].abs().mean() < 0.1 * y.abs().mean()


def test_installed_answers_for_all_but_the_stem():
    net, x = random_net(), images(2, 3, 67, 65)
    surrogate = untrained(net)
    assert list(surrogate.layers) == ["2", "5", "7"]
    by_hand = x
    for name, module in net.named_children():
        layer = surrogate.layers.get(name)
        by_hand = layer(by_hand, tuple(module(by_hand).shape[2:])) if layer else module(by_hand)
    with surrogate.installed(net) as same:
        assert same is net
        torch.testing.assert_close(net(x), by_hand)
    assert not torch.allclose(net(x), by_hand)


def test_the_convolutions_are_not_run(monkeypatch):
    net, sizes = random_net(), []
    surrogate = untrained(net)
    real = nn.Conv2d.forward
    monkeypatch.setattr(nn.Conv2d, "forward", lambda self, x: sizes.append(x.device) or real(self, x))
    with surrogate.installed(net):
        net(images(1, 3, 65, 65))
        net(images(1, 3, 65, 65))
    # twice the stem and two 3×3 of each layer; once per layer on a tensor without data, for its size
    assert sizes.count(torch.device("cpu")) == 2 * (1 + 2 * 3)
    assert sizes.count(torch.device("meta")) == 3


def test_gradient_against_finite_differences():
    net, x = random_net(), images(1, 3, 67, 65).requires_grad_()
    with untrained(net).installed(net), torch.no_grad():
        step = torch.zeros_like(x)
        step[0, 1, 30, 31] = 1e-6
        difference = (net(x + step) - net(x - step))[0, 1] / 2e-6
        with torch.enable_grad():
            (gradient,) = torch.autograd.grad(net(x)[0, 1], x)
    torch.testing.assert_close(gradient[0, 1, 30, 31], difference, rtol=1e-5, atol=0)


def test_checkerboard_of_a_pointwise_convolution_is_gone():
    net = nn.Sequential(nn.Conv2d(1, 1, 1, 2), nn.Conv2d(1, 1, 1, 2)).double().eval()
    x = images(1, 1, 32, 32).requires_grad_()
    with untrained(net).installed(net):
        (gradient,) = torch.autograd.grad(net[1](x).sum(), x)
    inside = gradient[0, 0, 4:-4, 4:-4]
    torch.testing.assert_close(inside, inside.mean().expand_as(inside))


@pytest.mark.parametrize("fails", [False, True])
def test_nothing_stays_on_the_model(fails):
    net = random_net(inplace=True)
    surrogate, before = untrained(net), state_of(net)
    try:
        with surrogate.installed(net):
            assert is_installed(net)
            net(images(1, 3, 65, 65).requires_grad_()).sum()
            if fails:
                raise ZeroDivisionError
    except ZeroDivisionError:
        assert fails
    assert_untouched(net, before)
    assert not is_installed(net)


def test_a_forward_that_somebody_else_has_put_there_comes_back():
    net = random_net()
    surrogate, theirs = untrained(net), net[5].forward
    net[5].forward = theirs
    with surrogate.installed(net):
        assert net[5].forward is not theirs
    assert net[5].forward is theirs


def test_nested_is_refused():
    net = random_net()
    surrogate = untrained(net)
    with surrogate.installed(net):
        active = state_of(net)
        with pytest.raises(ModelError, match="already"), surrogate.installed(net):
            pass
        assert state_of(net)[:3] == active[:3]


def test_another_model_is_refused_and_named():
    surrogate, other = untrained(random_net(0)), random_net(1)
    before = state_of(other)
    with pytest.raises(ModelError) as refused, surrogate.installed(other):
        pass
    assert surrogate.model_hash[:12] in str(refused.value)
    assert hash_of(other)[:12] in str(refused.value)
    assert_untouched(other, before)


def test_a_model_that_was_changed_after_a_check_is_refused():
    net = random_net()
    surrogate = untrained(net)
    surrogate.check(net)
    with torch.no_grad():
        net[0].weight[0, 0, 0, 0] += 1
    with pytest.raises(ModelError, match="made for"):
        surrogate.check(net)


def test_the_same_weights_with_other_strides_are_refused():
    net = random_net()
    surrogate = untrained(net)
    net[2].stride = (1, 1)
    with pytest.raises(ModelError, match="stands for the convolutions 2, 5, 7"):
        surrogate.check(net)


def test_a_model_without_strided_convolutions_is_refused():
    with pytest.raises(ModelError, match="nothing for a surrogate"):
        replaceable(nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.ReLU()))


def test_hash_is_that_of_names_shapes_and_values():
    net = random_net().float()
    first = hash_of(net)
    assert len(first) == 64
    assert hash_of(copy.deepcopy(net).to(memory_format=torch.channels_last)) == first
    assert hash_of(copy.deepcopy(net).double()) == first
    assert hash_of(nn.Sequential(net)) != first
    with torch.no_grad():
        net[0].bias[0] = torch.nextafter(net[0].bias[0], torch.tensor(9.0))
    assert hash_of(net) != first
    flat, square = nn.Module(), nn.Module()
    flat.register_buffer("x", torch.zeros(4))
    square.register_buffer("x", torch.zeros(2, 2))
    assert hash_of(flat) != hash_of(square)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_memory_formats_and_number_formats_agree(layout):
    net = random_net().float()
    surrogate, x = untrained(net), images(2, 3, 67, 65, dtype=torch.float32)
    with surrogate.installed(net):
        expected = net(x)
    net = net.to(memory_format=layout)
    with surrogate.installed(net):
        torch.testing.assert_close(net(x.to(memory_format=layout)), expected)
        with torch.autocast("cpu", torch.bfloat16):
            torch.testing.assert_close(net(x).float(), expected, rtol=0.05, atol=0.05)
    net.double()
    with surrogate.installed(net):
        torch.testing.assert_close(net(x.double()).float(), expected)
    assert all(layer.first.weight.dtype == torch.float32 for layer in surrogate.layers.values())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu():
    net = random_net().float()
    surrogate, x = untrained(net), images(2, 3, 67, 65, dtype=torch.float32)
    with surrogate.installed(net):
        expected = net(x)
    net.cuda()
    with surrogate.installed(net):
        torch.testing.assert_close(net(x.cuda()).cpu(), expected, rtol=1e-3, atol=1e-3)


def test_two_models_in_two_threads():
    nets = [random_net(1), random_net(2)]
    surrogates = [untrained(net) for net in nets]
    x, results = images(1, 3, 65, 65), {}

    def logits(i):
        with surrogates[i].installed(nets[i]):
            return nets[i](x).detach()

    def work(i):
        for _ in range(5):
            results[i] = logits(i)

    threads = [threading.Thread(target=work, args=(i,)) for i in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i in (0, 1):
        torch.testing.assert_close(results[i], logits(i))


def test_save_and_load(tmp_path):
    net, file = random_net(), tmp_path / "s.safetensors"
    scores = Scores(7, 0.125, 0.5, {"2": 0.25, "5": 0.5, "7": 1.0})
    made = untrained(net)
    saved = Surrogate(made.model_hash, made.layers, {"lr": 0.001, "slides": ["a"], "patch": None}, scores)
    saved.save(file)
    loaded = Surrogate.load(file)
    assert (loaded.model_hash, loaded.settings, loaded.scores) == (
        saved.model_hash, saved.settings, saved.scores,
    )  # fmt: skip
    assert list(loaded.layers) == ["2", "5", "7"]
    assert not any(weight.requires_grad for layer in loaded.layers.values() for weight in layer.parameters())
    x = images(1, 3, 65, 65)
    with saved.installed(net):
        expected = net(x)
    with loaded.installed(net):
        torch.testing.assert_close(net(x), expected, rtol=1e-5, atol=1e-5)  # kept as float32
    assert [path.name for path in tmp_path.iterdir()] == ["s.safetensors"]


def test_files_that_are_no_surrogates(tmp_path):
    with pytest.raises(ModelError, match="no such file"):
        Surrogate.load(tmp_path / "missing")
    (tmp_path / "text").write_text("not at all")
    with pytest.raises(ModelError, match="damaged"):
        Surrogate.load(tmp_path / "text")
    save_file({"x": torch.zeros(1)}, tmp_path / "weights.safetensors")
    with pytest.raises(ModelError, match="is no surrogate"):
        Surrogate.load(tmp_path / "weights.safetensors")


def test_a_file_that_cannot_be_written(tmp_path):
    with pytest.raises(OutputError, match="cannot be written"):
        untrained(random_net()).save(tmp_path / "missing" / "s.safetensors")


def test_finding_the_surrogate_of_a_model(tmp_path):
    file = tmp_path / "s.safetensors"
    net = random_net()
    untrained(net).save(file)
    assert surrogate_for(net, file).model_hash == hash_of(net)
    with pytest.raises(ModelError, match=r"s\.safetensors: the surrogate was made for"):
        surrogate_for(random_net(1), file)
    with pytest.raises(ModelError, match="--surrogate FILE"):
        surrogate_for(net)
    demo = load_classifier("demo").module
    assert surrogate_for(demo).model_hash == hash_of(demo)


def test_a_surrogate_can_be_sent_to_another_process():
    """With what it has learnt; not with what it knows of networks of this process."""
    net = random_net()
    surrogate = untrained(net)
    surrogate.check(net)
    sent = pickle.loads(pickle.dumps(surrogate))
    assert (sent.sha256, sent.model_hash) == (surrogate.sha256, surrogate.model_hash)
    x = images(1, 3, 32, 32)
    with surrogate.installed(net):
        expected = net(x)
    with sent.installed(net):
        assert torch.equal(net(x), expected)


@pytest.mark.parametrize(
    "change",
    [
        {"layers": "{}]"},
        {"layers": '{"0": [1000000, 1000000, 1]}'},
        {"layers": '{"0": "large"}'},
        {"scores": '{"unknown": 1}'},
        {"settings": ""},
        {"model_hash": None},
    ],
)
def test_a_file_that_claims_what_it_does_not_hold_is_damaged(tmp_path, change):
    untrained(random_net()).save(tmp_path / "whole.safetensors")
    with safe_open(tmp_path / "whole.safetensors", "pt") as file:
        metadata = file.metadata() | change
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a mapping
    damaged = tmp_path / "damaged.safetensors"
    save_file(tensors, damaged, {key: value for key, value in metadata.items() if value is not None})
    with pytest.raises(ModelError, match=r"damaged\.safetensors is damaged \(.*\); train it again"):
        Surrogate.load(damaged)
