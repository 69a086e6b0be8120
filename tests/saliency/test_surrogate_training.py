from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn

from tests.helpers.nets import random_net
from tests.helpers.untouched import assert_untouched, state_of
from wsi_saliency.errors import ModelError, OutputError, SettingsError
from wsi_saliency.saliency.surrogate import Surrogate, hash_of, replaceable
from wsi_saliency.saliency.surrogate_conv import SurrogateConv
from wsi_saliency.saliency.surrogate_training import score_surrogate, train_surrogate


@pytest.fixture(autouse=True)
def one_thread():
    """Tensors are so small here that threads would mostly wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def batches(count=3, size=4, side=33, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(size, 3, side, side, dtype=torch.float64, generator=generator) for _ in range(count)]


def started(net, wrong=()):
    """A surrogate whose layers answer with zeros, or are those they start as."""
    layers = {name: SurrogateConv.like(c) for name, c in replaceable(net).items()}
    for name in wrong:
        nn.init.zeros_(layers[name].second.weight)
    return Surrogate(hash_of(net), layers)


def weights(surrogate):
    return [weight for layer in surrogate.layers.values() for weight in layer.parameters()]


def assert_same(one, other):
    assert one.scores == other.scores
    assert one.settings == other.settings
    assert all(torch.equal(a, b) for a, b in zip(weights(one), weights(other), strict=True))


def reference(net, images, epochs, lr):
    """The same training, slowly: all activations first, then one loss for all layers."""
    layers = {name: SurrogateConv.like(c) for name, c in replaceable(net).items()}
    optimiser = torch.optim.Adam([w for layer in layers.values() for w in layer.parameters()], lr)
    for _, batch in itertools.product(range(epochs), images):
        loss, x = 0, batch
        for name, module in net.named_children():
            with torch.no_grad():
                y = module(x)
            if name in layers:
                loss = loss + (layers[name](x.clone(), tuple(y.shape[2:])) - y.clone()).abs().mean()
            x = y
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return layers


@pytest.mark.parametrize("inplace", [False, True])
def test_training_follows_the_definition(inplace):
    net, images = random_net(inplace=inplace), batches()
    surrogate = train_surrogate(net, images, epochs=2, lr=1e-3, held_out=0)
    expected = reference(random_net(), images, 2, 1e-3)
    for name, layer in expected.items():
        for ours, theirs in zip(surrogate.layers[name].parameters(), layer.parameters(), strict=True):
            torch.testing.assert_close(ours, theirs)


def test_loss_falls_and_what_can_be_learned_is():
    """A mean of 6×6 pixels is a resize, then a mean of 3×3; it starts as a mean of fewer pixels."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 1, 1, 2), nn.Conv2d(1, 1, 6, 2, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )
    nn.init.constant_(net[1].weight, 1 / 36)
    images, losses = [torch.randn(4, 3, 32, 32)], []
    start = score_surrogate(started(net), net, images).layer_errors["1"]
    trained = train_surrogate(
        net, images, 100, 0.02, held_out=images, on_step=lambda step: losses.append(step.losses["1"])
    )
    assert len(losses) == 100
    assert losses[-1] < 0.5 * losses[0]
    assert trained.scores.layer_errors["1"] < min(0.5 * start, 0.15)


def test_model_is_untouched_to_the_bit():
    net = random_net(inplace=True).train()
    net[4].eval()
    net[0].weight.requires_grad_(False)
    net[2].bias.grad = torch.ones_like(net[2].bias)
    before = state_of(net)
    surrogate = train_surrogate(net, batches(1), epochs=1, held_out=0.25)
    assert_untouched(net, before)
    assert surrogate.model_hash == hash_of(net)
    assert not any(weight.requires_grad for weight in weights(surrogate))
    assert surrogate.scores.images == 1


def test_model_is_untouched_after_an_interruption():
    net = random_net()
    before = state_of(net)

    def stop(step):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_surrogate(net, batches(1), epochs=1, on_step=stop)
    assert_untouched(net, before)


def test_steps_are_reported():
    steps = []
    train_surrogate(random_net(), batches(2), epochs=2, held_out=0, on_step=steps.append)
    assert [(step.epoch, step.step) for step in steps] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert all(list(step.losses) == ["2", "5", "7"] for step in steps)


def test_held_out_images_are_an_even_share_and_are_not_trained_on():
    images = batches(5, size=4)
    seen = []
    net = random_net()
    net[0].register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    surrogate = train_surrogate(net, images, epochs=2, held_out=0.1)
    assert surrogate.scores.images == 2
    held = [torch.cat(images)[0], torch.cat(images)[10]]
    trained = torch.cat(seen[:10])
    assert len(trained) == 2 * 18
    assert not any(torch.equal(a, b) for a in trained for b in held)
    assert torch.equal(torch.cat(seen[10::2]), torch.stack(held))  # each passes plain and with the surrogate


def test_batches_may_be_a_function_of_the_epoch():
    images = batches(4)
    by_epoch = train_surrogate(random_net(), lambda epoch: images[epoch::2], 2, held_out=images[:1])
    in_a_row = train_surrogate(random_net(), images[::2] + images[1::2], 1, held_out=images[:1])
    assert all(torch.equal(a, b) for a, b in zip(weights(by_epoch), weights(in_a_row), strict=True))


def test_an_interrupted_training_continues_as_if_it_had_not_been(tmp_path):
    images, checkpoint = batches(), tmp_path / "training.checkpoint"
    uninterrupted = train_surrogate(random_net(), images, 3)

    def stop(step):
        if (step.epoch, step.step) == (1, 1):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_surrogate(random_net(), images, 3, checkpoint=checkpoint, on_step=stop)
    steps = []
    continued = train_surrogate(random_net(), images, 3, checkpoint=checkpoint, on_step=steps.append)
    assert [step.epoch for step in steps] == [1, 1, 1, 2, 2, 2]
    assert_same(continued, uninterrupted)
    assert [path.name for path in tmp_path.iterdir()] == [checkpoint.name]


def test_another_training_is_not_continued(tmp_path):
    images, checkpoint = batches(1), tmp_path / "training.checkpoint"
    train_surrogate(random_net(), images, 1, checkpoint=checkpoint, settings={"seed": 1})
    with pytest.raises(SettingsError, match="another lr, seed;"):
        train_surrogate(random_net(), images, 2, 0.1, checkpoint=checkpoint, settings={"seed": 2})
    with pytest.raises(SettingsError, match="another model;"):
        train_surrogate(random_net(1), images, 2, checkpoint=checkpoint, settings={"seed": 1})
    checkpoint.write_bytes(b"cut off")
    with pytest.raises(SettingsError, match="damaged; delete it"):
        train_surrogate(random_net(), images, 2, checkpoint=checkpoint)


def test_a_checkpoint_that_cannot_be_written(tmp_path):
    with pytest.raises(OutputError, match="checkpoint: cannot be written"):
        train_surrogate(random_net(), batches(1), 1, checkpoint=tmp_path / "missing" / "checkpoint")


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"batches": []}, "no images to train on"),
        ({"batches": iter(batches(1))}, "only once"),
        ({"batches": lambda epoch: batches(1)}, "held-out batches of their own"),
        ({"held_out": 1.0}, "cannot be held out"),
        ({"epochs": 0}, "have to be positive"),
        ({"lr": float("nan")}, "have to be positive"),
    ],
)
def test_what_makes_no_sense_is_refused(how, message):
    with pytest.raises(SettingsError, match=message):
        train_surrogate(random_net(), **({"batches": batches(1)} | how))


def test_a_model_without_strided_convolutions_is_refused():
    with pytest.raises(ModelError, match="nothing for a surrogate"):
        train_surrogate(nn.Sequential(nn.Conv2d(3, 4, 3, 2)), batches(1))


class TwoWays(nn.Module):
    """A strided convolution that is called twice, and one that is never called."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, 2)
        self.twice = nn.Conv2d(4, 4, 3, 2, 1)
        self.never = nn.Conv2d(4, 4, 3, 2, 1)

    def forward(self, x):
        return self.twice(self.twice(self.stem(x))).mean((2, 3))


def test_convolutions_called_twice_or_never():
    surrogate = train_surrogate(TwoWays().double(), batches(2), 1)
    assert list(surrogate.layers) == ["twice", "never"]
    assert list(surrogate.scores.layer_errors) == ["twice"]


def test_scores_against_the_definition():
    net, images = random_net(), batches(2)
    surrogate = started(net, wrong=["5"])
    scores = score_surrogate(surrogate, net, images)
    plain = torch.cat([net(x) for x in images]).softmax(1)
    with surrogate.installed(net):
        changed = torch.cat([net(x) for x in images]).softmax(1)
    assert scores.images == 8
    assert scores.prediction_difference == pytest.approx(
        (changed - plain).abs().max(1)[0].mean().item(), rel=1e-4
    )
    assert scores.class_agreement == (changed.argmax(1) == plain.argmax(1)).double().mean().item()
    assert scores.layer_errors["5"] == pytest.approx(1)
    assert scores.layer_errors["2"] < 1


@pytest.mark.parametrize(("output", "agreement"), [("softmax", 1.0), ("sigmoid", 0.5)])
def test_classes_that_stand_alone_agree_one_by_one(output, agreement):
    class Logits(nn.Module):
        """Logits (3, 1), or (3, −1) where the strided convolution answers 0."""

        def __init__(self):
            super().__init__()
            self.stem, self.second = nn.Conv2d(3, 1, 1, 2), nn.Conv2d(1, 1, 1, 2)

        def forward(self, x):
            sign = self.second(torch.ones_like(x[:, :1])).abs().amax((1, 2, 3)).gt(0).float() * 2 - 1
            return torch.stack([torch.full_like(sign, 3.0), sign], 1)

    net = Logits()
    nn.init.ones_(net.second.weight)
    nn.init.zeros_(net.second.bias)
    scores = score_surrogate(started(net, wrong=["second"]), net, [torch.zeros(2, 3, 8, 8)], output)
    assert scores.class_agreement == agreement


def test_no_images_no_scores():
    net = random_net()
    assert score_surrogate(started(net), net, []) is None
    assert train_surrogate(net, batches(1), 1, held_out=0).scores is None
