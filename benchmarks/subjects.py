"""What the benchmarks measure on: a real pretrained network with photographs, and the demo classifier."""

from __future__ import annotations

import sys
from itertools import count
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from tqdm import tqdm

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "sample_data")]

from make_sample import TUMOUR_NUCLEUS, draw_scene  # noqa: E402

from tests.helpers.pretrained import efficientnet_lite0, random_crops  # noqa: E402
from wsi_saliency import Surrogate, train_surrogate  # noqa: E402
from wsi_saliency.models.classifier import Classifier  # noqa: E402

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


def drawn_tumour(classifier: Classifier, n: int) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Draw patches (n, P, P, 3) that a classifier takes for tumour, and their tumour nuclei (n, P, P).

    The scenes' seeds are none that the classifier was trained or measured with.
    """
    rng, side = np.random.default_rng(0), classifier.patch
    patches: list[NDArray[np.uint8]] = []
    nuclei: list[NDArray[np.bool_]] = []
    for seed in count(9000):
        scene = draw_scene(seed, 1536, 1536)
        rows, columns = np.nonzero(scene.nests)
        some = rng.choice(len(rows), min(24, len(rows)), replace=False)
        corners = np.clip(np.stack([rows[some], columns[some]], 1) - side // 2, 0, 1536 - side)
        cut = [(slice(y, y + side), slice(x, x + side)) for y, x in corners.tolist()]
        drawn = np.stack([scene.image[box] for box in cut])
        with torch.no_grad():
            logits = classifier.module(classifier.normalised(drawn, torch.device("cpu")))[:, 0]
        for i in np.flatnonzero((logits > 0).numpy()):
            patches.append(drawn[i])
            nuclei.append(scene.nuclei[cut[i]] == TUMOUR_NUCLEUS)
        if len(patches) >= n:
            return np.stack(patches[:n]), np.stack(nuclei[:n])
    raise AssertionError
