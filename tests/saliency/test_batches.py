from __future__ import annotations

import signal
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import chain

import numpy as np
import pytest
import torch

from tests.helpers.nets import spot_classifier
from wsi_saliency.interruption import Interruption, interruptible
from wsi_saliency.saliency import engine
from wsi_saliency.saliency.batches import DEFAULT_BATCH, SHARE, Batch, fitting_batch
from wsi_saliency.saliency.engine import Explainer


@dataclass
class Memory:
    """A device on which a pass takes ``base`` bytes, and ``each`` for each patch."""

    room: int
    base: int = 50
    each: int = 100
    explained: list[int] = field(default_factory=list)

    def free(self) -> int:
        return self.room

    def peak_of(self, work) -> int:
        work()
        return self.base + self.each * self.explained[-1]

    def explain(self, n):
        self.explained.append(n)
        if self.base + self.each * n > self.room:
            raise torch.OutOfMemoryError


def test_what_does_not_fit_is_halved_for_good_and_everything_comes_once_and_in_order():
    batch, tried = Batch(16), []

    def work(some):
        tried.append(some.stop - some.start)
        if tried[-1] > 5:
            raise torch.OutOfMemoryError
        return list(range(some.start, some.stop))

    assert list(chain(*batch.over(14, work))) == list(range(14))
    assert tried == [14, 8, 4, 4, 4, 2]
    assert batch.size == 4
    assert Batch.of(batch) is batch
    assert Batch.of(7) == Batch(7)


def test_a_single_patch_that_does_not_fit_is_said():
    def work(some):
        raise torch.OutOfMemoryError

    with pytest.raises(torch.OutOfMemoryError):
        list(Batch(4).over(3, work))


def test_a_signal_that_a_library_has_swallowed_ends_the_passes():
    done = []

    def work(some):
        done.append(some)
        with suppress(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)

    with pytest.raises(Interruption), interruptible():
        list(Batch(2).over(6, work))
    assert done == [slice(0, 2)]


@pytest.mark.parametrize("room", [10, 200, 300, 1000, 5_000, 15_000, 16_100, 10**9])
def test_the_largest_half_that_fits(room):
    memory = Memory(room)
    found = fitting_batch(128, memory, memory.explain)
    fits = [n for n in (128, 64, 32, 16, 8, 4, 2, 1) if 50 + 100 * n <= SHARE * room]
    assert found == max(fits, default=1)


def test_passes_that_take_no_more_for_more_patches_leave_the_batch(monkeypatch):
    memory = Memory(1000, each=0)
    assert fitting_batch(96, memory, memory.explain) == 96


def test_an_explainer_on_a_gpu_asks_for_its_memory(monkeypatch):
    """The device is the CPU, which is called otherwise."""
    classifier = spot_classifier(64)
    memory, seen = Memory(3_000), []

    def asked(device):
        seen.append(device)
        return memory

    explain = Explainer._explain

    def counted(explainer, patches, maps):
        memory.explain(len(patches))
        return explain(explainer, patches, maps)

    monkeypatch.setattr(engine, "memory_of", asked)
    monkeypatch.setattr(Explainer, "_explain", counted)
    how = {"layers": ["8"], "methods": ["none"], "device": "cpu"}
    assert Explainer.of(classifier, **how).batch == 16  # 50 + 1600 < 2400
    assert Explainer.of(classifier, batch=77, **how).batch == 77
    assert memory.explained == [1, 1, 2]
    memory.room = 1_500
    found = Explainer.of(classifier, **how)
    assert found.batch == 8
    memory.room = 500
    found(np.zeros((8, 64, 64, 3), np.uint8))
    assert found.batch == 4  # what comes too late is still halved


def test_the_cpu_has_the_batch_that_it_always_had():
    assert engine.memory_of(torch.device("cpu")) is None
    made = Explainer.of(spot_classifier(64), layers=["8"], methods=["none"], device="cpu")
    assert made.batch == DEFAULT_BATCH["cpu"]
