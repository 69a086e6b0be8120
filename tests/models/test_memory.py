from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from tests.helpers.classifiers import classifier
from wsi_saliency.errors import ModelError
from wsi_saliency.models import classifier as classifiers
from wsi_saliency.models.classifier import checked
from wsi_saliency.models.memory import bytes_of_memory, pass_bytes


class Kept(nn.Module):
    """A wide stem in front of what is kept apart, and a place where values are read."""

    def __init__(self, *, reads: bool = False, largest: int = 10**9) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 8, 3, 2, 1), nn.Linear(8, 2)
        self.reads, self.largest = reads, largest

    def forward(self, x: Tensor) -> Tensor:
        assert x.shape[-1] <= self.largest, f"at most {self.largest} px"
        y = self.stem(x).relu_()
        if self.reads and y.max() > 1e9:
            y = y + 1
        return self.head(y.mean((2, 3)))  # type: ignore[no-any-return]


def test_a_pass_takes_the_bytes_of_its_tensors() -> None:
    image, stem = 3 * 4 * 1000**2, 8 * 4 * 500**2  # the ReLU works in place
    assert pass_bytes(Kept(), 1000) == pytest.approx(image + stem, rel=1e-3)
    assert pass_bytes(Kept(reads=True), 1000) == 64 * 4 * 500**2


def test_a_network_is_as_before_when_its_pass_was_measured() -> None:
    net = Kept()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    pass_bytes(net, 10**5)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert all(value.device.type == "cpu" for value in net.parameters())


def test_this_machine_has_some_memory() -> None:
    assert 2**28 < bytes_of_memory() < 2**50


@pytest.mark.parametrize("reads", [False, True])
@pytest.mark.parametrize("patch", [10**5, 10**9])
def test_a_patch_beyond_memory_is_refused_without_taking_any(
    reads: bool, patch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(classifiers, "_dry_run", lambda classifier: pytest.fail("took memory"))
    with pytest.raises(
        ModelError, match=rf"a patch of {patch} px would take .*choose --patch \d+ or smaller$"
    ):
        checked(replace(classifier("a", "b", module=Kept(reads=reads)), patch=patch))


def test_the_patch_that_is_said_to_fit_does_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(classifiers, "bytes_of_memory", lambda: 60_000_000)
    with pytest.raises(ModelError, match="choose --patch 1216 or smaller"):
        checked(replace(classifier("a", "b", module=Kept()), patch=5000))
    checked(replace(classifier("a", "b", module=Kept()), patch=1216))


def test_what_a_network_says_of_a_patch_is_told() -> None:
    with pytest.raises(ModelError, match=r"does not take a patch of 100000 px \(at most 224 px\)"):
        checked(replace(classifier("a", "b", module=Kept(largest=224)), patch=10**5))
