"""What smoothing achieves: total variation of each method relative to none, and a figure of the maps.

    python benchmarks/smoothing.py -o docs/smoothing.png

Measured on EfficientNet-Lite0 (ImageNet weights, photographs) and on the demo classifier (the sample slide),
at each stage and for each attribution. EfficientNet-Lite0's surrogate is trained first, on crops of
photographs, unless there is a file of it.
"""

from __future__ import annotations

import sys
from pathlib import Path

import click
import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent))

from subjects import ROOT, Subject, lite0

from wsi_saliency import explain_patches, load_classifier, open_slide, total_variation
from wsi_saliency.geometry import Region, Size
from wsi_saliency.saliency.layers import feature_stages
from wsi_saliency.saliency.surrogate import surrogate_for
from wsi_saliency.settings import METHODS, Attribution

ATTRIBUTIONS: tuple[Attribution, ...] = ("gradient", "deeplift", "integrated-gradients")


def demo() -> Subject:
    """Take the demo classifier and patches of tumour nests of the sample slide."""
    classifier = load_classifier("demo")
    with open_slide(ROOT / "sample_data/tumour_nests.svs") as slide:
        corners = [
            (1550, 1450),
            (3150, 950),
            (1700, 2800),
            (3000, 2800),
            (1600, 3000),
            (3500, 1700),
            (1200, 1700),
            (2550, 1050),
        ]
        pixels = [slide.read(Region(x, y, 224, 224), Size(224, 224)) for x, y in corners]
    net = classifier.module
    images = classifier.normalised(np.stack(pixels), torch.device("cpu"))
    return Subject("demo", net, images, torch.zeros(8, dtype=torch.long), surrogate_for(net))


def table(subject: Subject) -> None:
    """Print the total variation of each method relative to none, for each stage and attribution."""
    print(f"\n{subject.name}, total variation relative to none, {len(subject.images)} patches")
    print(f"| layer | attribution | {' | '.join(METHODS)} |\n|---|---|{'---|' * len(METHODS)}")
    for stage in feature_stages(subject.net, subject.images[:1]):
        for attribution in ATTRIBUTIONS:
            means = [
                float(total_variation(explain(subject, stage.name, attribution, method)).mean())
                for method in METHODS
            ]
            cells = " | ".join(relative(m, means[0]) if i else f"1 ({m:.2f})" for i, m in enumerate(means))
            print(f"| {stage.name} (1/{stage.reduction}) | {attribution} | {cells} |", flush=True)


def relative(value: float, plain: float) -> str:
    """Share of the plain map's total variation; there is none where pooling makes the gradient constant."""
    return f"{value / plain:.2f}" if plain else "–"


def explain(subject: Subject, layer: str, attribution: Attribution, method: str) -> Tensor:
    """Attribution of all channels (N, C, h, w)."""
    how = {"surrogate": subject.surrogate, "reduce": None, "steps": 10}
    return explain_patches(subject.net, subject.images, layer, subject.target, attribution, method, **how)


def figure(subject: Subject, layers: tuple[str, ...], path: Path) -> None:
    """Draw one patch under the four methods at three layers."""
    canvas = Figure(figsize=(2.3 * (len(METHODS) + 1), 2.3 * len(layers)), layout="constrained")
    axes = canvas.subplots(len(layers), len(METHODS) + 1)
    picture = subject.images[0].permute(1, 2, 0)
    picture = (picture - picture.min()) / (picture.max() - picture.min())
    for row, layer in zip(axes, layers, strict=True):
        row[0].imshow(picture)
        row[0].set_ylabel(layer)
        for axis, method in zip(row[1:], METHODS, strict=True):
            values = explain(subject, layer, "gradient", method)[0].mean(0).abs()
            axis.imshow(values, cmap="magma", vmax=float(values.quantile(0.99)))
            axis.set_title(method if layer == layers[0] else "")
        for axis in row:
            axis.set_xticks([])
            axis.set_yticks([])
    canvas.savefig(path, dpi=90)


@click.command()
@click.option("-o", "--out", type=click.Path(path_type=Path), default=ROOT / "docs/smoothing.png")
@click.option("--surrogate", type=click.Path(path_type=Path), help="Of EfficientNet-Lite0; made if missing.")
@click.option("--epochs", default=50, show_default=True, help="Epochs of its training, 256 crops each.")
def main(out: Path, surrogate: Path | None, epochs: int) -> None:
    """Print the tables and draw the figure."""
    small, real = demo(), lite0(surrogate, epochs)
    figure(small, ("layer1", "layer2", "layer3"), out)
    figure(real, ("blocks.1", "blocks.2", "blocks.4"), out.with_name(f"{out.stem}-lite0{out.suffix}"))
    table(small)
    table(real)


if __name__ == "__main__":
    main()
