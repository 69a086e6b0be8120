"""What averaging over shifts achieves: phase stability of `shift-average`, and what it costs.

    python benchmarks/shift_average.py

Measured on a small vision transformer of random weights and on the demo classifier, on tumour nests of the
sample slide. Windows of 224 px are cut from each place: one, and others moved by quarters of the total stride
to the lower right. Their maps are moved back and compared with the first (Pearson's correlation, but for the
outermost total stride). *blurred* is the control: the maps of ``none``, moved to and fro by the same shares
of a cell as `shift-average` moves its own, so that both are as smooth.
"""

from __future__ import annotations

import statistics
import sys
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import timm
import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parent))

from subjects import ROOT

from wsi_saliency import PatchExplainer, load_classifier, open_slide
from wsi_saliency.geometry import Region, Size
from wsi_saliency.models.classifier import Classifier
from wsi_saliency.saliency.layers import measure
from wsi_saliency.saliency.shifts import moved_back, shifts_within
from wsi_saliency.saliency.smoothing import SMOOTHING
from wsi_saliency.settings import Attribution, Method

METHOD: Method = "shift-average"
SIDE = 224
CORNERS = ((1550, 1450), (3150, 950), (1700, 2800), (3000, 2800), (1600, 3000), (3500, 1700))


class Case(NamedTuple):
    """A network, and what is asked of it."""

    name: str
    net: nn.Module
    layers: tuple[str, ...]
    attributions: tuple[Attribution, ...]
    methods: tuple[Method, ...]


def transformer(classifier: Classifier) -> Case:
    """Make a vision transformer of random weights, six blocks of 192 channels."""
    torch.manual_seed(0)
    net = timm.create_model("vit_tiny_patch16_224", depth=6, num_classes=2).eval()
    attributions: tuple[Attribution, ...] = ("gradient-x-activation", "gradcam", "integrated-gradients")
    return Case("random ViT-Tiny, 6 blocks", net, ("blocks.1", "blocks.3"), attributions, ("none", METHOD))


def demo(classifier: Classifier) -> Case:
    """Take the demo classifier."""
    attributions: tuple[Attribution, ...] = ("gradient", "deeplift")
    layers = ("layer1", "layer2", "layer3", "layer4")
    return Case("demo classifier", classifier.module, layers, attributions, ("none", "centred-hook", METHOD))


def pictures(classifier: Classifier, margin: int) -> Tensor:
    """Patches of tumour nests with a margin to move in, normalised."""
    side = SIDE + margin
    with open_slide(ROOT / "sample_data/tumour_nests.svs") as slide:
        pixels = [slide.read(Region(x, y, side, side), Size(side, side)) for x, y in CORNERS]
    return classifier.normalised(np.stack(pixels), torch.device("cpu"))


def agreement(first: Tensor, other: Tensor, border: int) -> float:
    """Mean correlation of maps (N, h, w) without some cells at the border."""
    within = slice(border, -border or None)
    pairs = (
        torch.stack([a[within, within].flatten(), b[within, within].flatten()])
        for a, b in zip(first, other, strict=True)
    )
    return statistics.fmean(float(torch.corrcoef(pair)[0, 1]) for pair in pairs)


def blurred(maps: Tensor, stride: int, reduction: int) -> Tensor:
    """Move maps to each of the shifts, and take the mean."""
    shifts = shifts_within(stride, SMOOTHING[METHOD].shifts)
    return torch.stack([moved_back(maps[:, None], s, reduction)[:, 0] for s in shifts]).mean(0)


def stabilities(case: Case, images: Tensor, layer: str, attribution: Attribution) -> dict[str, float]:
    """Phase stability of each method and of the control."""
    first = images[:, :, :SIDE, :SIDE]
    g = measure(case.net, layer, first[:1])
    s, r = g.total_stride, g.reduction
    found = {}
    for method in case.methods:
        explain = PatchExplainer(case.net, first, layer, attribution, method, steps=10)
        at = {
            d: explain(images[:, :, d : d + SIDE, d : d + SIDE], 0) for d in (0, s // 4, s // 2, 3 * s // 4)
        }
        for name in (method, "blurred") if method == "none" else (method,):
            maps = {d: blurred(m, s, r) for d, m in at.items()} if name == "blurred" else at
            back = {d: moved_back(m[:, None], (-d, -d), r)[:, 0] for d, m in maps.items()}
            found[name] = statistics.fmean(agreement(maps[0], back[d], s // r) for d in at if d)
    return found


def cost(case: Case, images: Tensor, repeats: int = 5) -> float:
    """Time of `shift-average` in those of ``none``, the median of paired runs."""
    first = images[:, :, :SIDE, :SIDE]
    ratios = []
    explainers = [
        PatchExplainer(case.net, first, case.layers[0], "gradient-x-activation", m) for m in ("none", METHOD)
    ]
    for _ in range(repeats + 1):
        spent = []
        for explain in explainers:
            start = time.perf_counter()
            explain(first, 0)
            spent.append(time.perf_counter() - start)
        ratios.append(spent[1] / spent[0])
    return statistics.median(ratios[1:])


def main() -> None:
    """Print a table for each network."""
    classifier = load_classifier("demo")
    for case in (transformer(classifier), demo(classifier)):
        images = pictures(classifier, 32)
        names = [name for m in case.methods for name in ((m, "blurred") if m == "none" else (m,))]
        print(f"\n{case.name}, {len(images)} patches; {cost(case, images):.1f} times as long as none")
        print(f"| layer | attribution | {' | '.join(names)} |\n|---|---|{'---|' * len(names)}")
        for layer in case.layers:
            for attribution in case.attributions:
                found = stabilities(case, images, layer, attribution)
                print(f"| {layer} | {attribution} | {' | '.join(f'{found[name]:.2f}' for name in names)} |")


if __name__ == "__main__":
    main()
