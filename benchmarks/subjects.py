"""What the benchmarks measure on: a real pretrained network with photographs, and the demo classifier."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from tqdm import tqdm

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from tests.pretrained import efficientnet_lite0, random_crops  # noqa: E402
from wsi_saliency import Surrogate, train_surrogate  # noqa: E402

SIDE = 224


class Subject(NamedTuple):
    """A network, patches (N, 3, H, W) for it, a target (N,) each, and its surrogate."""

    name: str
    net: nn.Module
    images: Tensor
    target: Tensor
    surrogate: Surrogate


def lite0_surrogate(net: nn.Module, file: Path | None, epochs: int, crops: int) -> Surrogate:
    """Read EfficientNet-Lite0's surrogate from a file; train it, and write it there, if there is none.

    Every epoch sees other crops of the photographs; 64 more are held out.
    """
    if file is not None and file.is_file():
        return Surrogate.load(file)
    with tqdm(total=epochs * crops // 8, desc="surrogate", unit="step") as bar:
        surrogate = train_surrogate(
            net,
            lambda epoch: random_crops(SIDE, crops, epoch + 1).split(8),
            epochs,
            held_out=random_crops(SIDE, 64, 0).split(8),
            on_step=lambda step: bar.update(),
        )
    if file is not None:
        surrogate.save(file)
    return surrogate


def lite0(file: Path | None, epochs: int = 10, crops: int = 256, n: int = 8) -> Subject:
    """Take EfficientNet-Lite0 and crops of photographs, with the class that it finds most likely."""
    net = efficientnet_lite0()
    images = random_crops(SIDE, n, seed=10**6)
    with torch.no_grad():
        target = torch.cat([net(batch).argmax(1) for batch in images.split(16)])
    surrogate = lite0_surrogate(net, file, epochs, crops)
    return Subject("EfficientNet-Lite0", net, images, target, surrogate)
