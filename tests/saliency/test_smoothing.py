from __future__ import annotations

import threading
from itertools import product

import pytest
import torch
from torch import nn

from tests.helpers.convolutions import CONVOLUTIONS, CountConvolutions
from tests.helpers.nets import random_net
from tests.helpers.untouched import assert_untouched, state_of
from wsi_saliency.errors import ModelError
from wsi_saliency.saliency.layers import strided_convolutions
from wsi_saliency.saliency.smoothing import SMOOTHING, box_average, smoothed, triangle_average
from wsi_saliency.saliency.surrogate import Surrogate, hash_of, replaceable
from wsi_saliency.saliency.surrogate_conv import SurrogateConv
from wsi_saliency.settings import ATTRIBUTIONS, METHODS


def shifted(g, a, b):
    """Shift down by ``a`` and right by ``b`` with wrap-around, as the authors do."""
    return torch.roll(g, (a, b), (2, 3))


def reference_gradient(convolution, x, upstream):
    """Average the shifted gradients of one convolution's input, closely following the definition."""
    x = x.detach().requires_grad_()
    (g,) = torch.autograd.grad(convolution(x), x, upstream)
    s_y, s_x = convolution.stride
    shifts = [shifted(g, a, b) for a in range(s_y) for b in range(s_x)]
    return sum(shifts) / len(shifts)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
@pytest.mark.parametrize("size", [(16, 16), (17, 23)])
@pytest.mark.parametrize("how", CONVOLUTIONS.values(), ids=CONVOLUTIONS.keys())
def test_backward_hook_equals_the_average_of_shifts_away_from_the_border(how, size, dtype, tolerance):
    torch.manual_seed(0)
    convolution = nn.Conv2d(4, 8, **how).to(dtype)
    x = torch.randn(2, 4, *size, dtype=dtype, requires_grad=True)
    with smoothed(convolution, "backward-hook"):
        y = convolution(x)
    upstream = torch.randn_like(y)
    (smooth,) = torch.autograd.grad(y, x, upstream)
    expected = reference_gradient(convolution, x, upstream)
    inside = (..., slice(convolution.stride[0] - 1, None), slice(convolution.stride[1] - 1, None))
    scale = expected.abs().max()
    assert (smooth - expected)[inside].abs().max() <= tolerance * scale
    assert torch.equal(y, convolution(x))


def centred_average(g, stride):
    """Average with box and mirrored box, value by value; beyond the border the edge repeats."""
    s_y, s_x = stride
    h, w = g.shape[2:]
    averaged = torch.zeros_like(g)
    for i, j in product(range(h), range(w)):
        for a, b, c, d in product(range(s_y), range(s_x), range(s_y), range(s_x)):
            y, x = min(max(i - a + c, 0), h - 1), min(max(j - b + d, 0), w - 1)
            averaged[..., i, j] += g[..., y, x] / (s_y * s_x) ** 2
    return averaged


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
@pytest.mark.parametrize("size", [(8, 8), (9, 11)])
@pytest.mark.parametrize("how", CONVOLUTIONS.values(), ids=CONVOLUTIONS.keys())
def test_centred_hook_equals_box_and_mirrored_box_to_the_border(how, size, dtype, tolerance):
    torch.manual_seed(0)
    convolution = nn.Conv2d(4, 8, **how).to(dtype)
    x = torch.randn(1, 4, *size, dtype=dtype, requires_grad=True)
    with smoothed(convolution, "centred-hook"):
        y = convolution(x)
    upstream = torch.randn_like(y)
    (smooth,) = torch.autograd.grad(y, x, upstream)
    (plain,) = torch.autograd.grad(convolution(x), x, upstream)
    expected = centred_average(plain, convolution.stride)
    assert (smooth - expected).abs().max() <= tolerance * expected.abs().max()
    assert torch.equal(y, convolution(x))


def test_centred_average_is_symmetric_and_keeps_the_sum_inside():
    g = torch.zeros(1, 1, 9, 11, dtype=torch.float64)
    g[0, 0, 4, 5] = 1
    for stride in ((2, 2), (4, 2), (1, 3)):
        averaged = triangle_average(g, stride)
        assert torch.equal(averaged, averaged.flip(2, 3))
        assert averaged.sum().item() == pytest.approx(1)
    assert triangle_average(g, (2, 2))[0, 0, 3, 4:7].tolist() == [1 / 16, 1 / 8, 1 / 16]


def test_centred_average_has_no_checkerboard():
    y, x = torch.meshgrid(torch.arange(8.0), torch.arange(8.0), indexing="ij")
    for board in ((-1) ** x, (-1) ** y, (-1) ** (x + y)):
        inside = triangle_average(board[None, None], (2, 2))[..., 1:-1, 1:-1]
        assert inside.abs().max() == 0


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
@pytest.mark.parametrize("size", [(32, 32), (33, 39)])
@pytest.mark.parametrize("how", CONVOLUTIONS.values(), ids=CONVOLUTIONS.keys())
def test_forward_hook_equals_the_average_over_shifted_inputs(how, size, dtype, tolerance):
    """Away from the border by the kernel and the shift: there is the wrap-around of the definition."""
    torch.manual_seed(0)
    convolution = nn.Conv2d(4, 8, **how).to(dtype)
    net = nn.Sequential(nn.Conv2d(4, 4, 1, (2, 1), groups=4).to(dtype), convolution)  # a stem, left as it is
    x = torch.randn(2, 4, 2 * size[0], size[1], dtype=dtype)
    with smoothed(net, "forward-hook"):
        found = net(x)
    before = net[0](x)
    s_y, s_x = convolution.stride
    outputs = [convolution(shifted(before, a, b)) for a in range(s_y) for b in range(s_x)]
    expected = sum(outputs) / len(outputs)
    inside = (..., slice(5, -5), slice(5, -5)) if s_y == 2 else (..., slice(3, -3), slice(3, -3))
    assert expected[inside].numel()
    assert (found - expected)[inside].abs().max() <= tolerance * expected.abs().max()


def test_forward_hook_is_one_convolution():
    net = nn.Sequential(nn.Conv2d(3, 3, 3, 2, 1), nn.Conv2d(3, 3, 3, 2, 1))
    with CountConvolutions() as watch, smoothed(net, "forward-hook"):
        net(torch.zeros(1, 3, 16, 16))
    assert watch.count == 2


def test_border_is_repeated():
    g = torch.arange(12.0).reshape(1, 1, 3, 4)
    averaged = box_average(g, (2, 2))
    assert averaged[0, 0, 0, 0] == g[0, 0, 0, 0]
    assert averaged[0, 0, 0, 2] == g[0, 0, 0, 1:3].mean()
    assert averaged[0, 0, 2, 3] == g[0, 0, 1:3, 2:4].mean()
    assert box_average(torch.ones(1, 1, 5, 6), (4, 2)).eq(1).all()


@pytest.mark.parametrize("method", ["backward-hook", "centred-hook"])
def test_predictions_are_bit_identical_under_a_hook_on_the_gradient(method):
    net, x = random_net(), torch.randn(2, 3, 67, 65, dtype=torch.float64)
    with smoothed(net, method) as same:
        assert same is net
        assert torch.equal(net(x), random_net()(x))


@pytest.mark.parametrize("method", METHODS)
def test_the_table_says_which_methods_change_predictions(method):
    net, x = random_net(), torch.randn(2, 3, 67, 65, dtype=torch.float64)
    stand_ins = {name: SurrogateConv.like(convolution) for name, convolution in replaceable(net).items()}
    before = net(x)
    with smoothed(net, method, Surrogate(hash_of(net), stand_ins)):
        changed = not torch.equal(net(x), before)
    assert changed == SMOOTHING[method].changes_predictions


def test_checkerboard_of_a_pointwise_convolution_is_gone():
    """A 1×1 convolution of stride 2 touches one pixel in four; its averaged gradient is flat inside."""
    convolution = nn.Conv2d(1, 1, 1, 2)
    x = torch.randn(1, 1, 8, 8, requires_grad=True)
    with smoothed(convolution, "backward-hook"):
        (g,) = torch.autograd.grad(convolution(x).sum(), x)
    inside = g[..., 1:, 1:]
    torch.testing.assert_close(inside, convolution.weight.detach().expand_as(inside) / 4)


@pytest.mark.parametrize("method", [m for m in METHODS if m != "surrogate"])  # which has tests of its own
def test_nothing_stays_on_the_model(method):
    net = random_net()
    before = state_of(net)
    with smoothed(net, method):
        net(torch.randn(1, 3, 65, 65, dtype=torch.float64, requires_grad=True)).sum()
    assert_untouched(net, before)


@pytest.mark.parametrize("method", [m for m in METHODS if m != "surrogate"])  # which has tests of its own
def test_nothing_stays_on_the_model_after_an_exception(method):
    net = random_net()
    before = state_of(net)
    with pytest.raises(ZeroDivisionError), smoothed(net, method):
        raise ZeroDivisionError
    assert_untouched(net, before)


def test_two_methods_are_never_active_at_once():
    net = random_net()
    with smoothed(net, "backward-hook"):
        active = state_of(net)
        with pytest.raises(ModelError, match="already"), smoothed(net, "backward-hook"):
            pass
        assert state_of(net)[:3] == active[:3]


def test_two_models_in_two_threads():
    nets, results = [random_net(1), random_net(2)], {}
    x = torch.randn(1, 3, 65, 65, dtype=torch.float64)

    def gradient(net):
        leaf = x.clone().requires_grad_()
        with smoothed(net, "backward-hook"):
            return torch.autograd.grad(net(leaf).sum(), leaf)[0]

    def work(i):
        for _ in range(5):
            results[i] = gradient(nets[i])

    threads = [threading.Thread(target=work, args=(i,)) for i in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i in (0, 1):
        torch.testing.assert_close(results[i], gradient(nets[i]), rtol=0, atol=1e-12)


def test_stem_comes_first_and_all_kinds_are_found():
    assert list(strided_convolutions(random_net())) == ["0", "2", "5", "7"]


def test_the_table_has_the_names_of_the_command_line():
    from wsi_saliency.saliency.attribution import ATTRIBUTION

    assert tuple(SMOOTHING) == METHODS
    assert tuple(ATTRIBUTION) == ATTRIBUTIONS
