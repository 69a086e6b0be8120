"""What further maps of the same patches cost, in the time of one map.

Explains patches of 224 px by a random ResNet-18: one map and several, in turn, so that whatever else the
machine does slows both alike; prints the median of the pairs' ratios.

    python benchmarks/many_maps.py
"""

from __future__ import annotations

import time
from statistics import median

import click
import timm
import torch

from wsi_saliency.mapspec import MapSpec
from wsi_saliency.saliency.network import Network

LAYERS = ("layer1", "layer2", "layer3")  # at 1/4, 1/8 and 1/16


def maps(layers: tuple[str, ...], methods: tuple[str, ...], attribution: str) -> tuple[MapSpec, ...]:
    """Combine layers and methods."""
    return tuple(MapSpec(layer, method, attribution) for layer in layers for method in methods)  # type: ignore[arg-type]


def seconds(network: Network, images: torch.Tensor, targets: int, some: tuple[MapSpec, ...]) -> float:
    """Time one batch."""
    chosen = [torch.full((len(images),), i, device=images.device) for i in range(targets)]
    start = time.perf_counter()
    network.explain(images, chosen, lambda spec, target, values: network.map_of(spec, values), some)
    return time.perf_counter() - start


@click.command(help=__doc__)
@click.option("--patches", default=16, show_default=True)
@click.option("--rounds", default=9, show_default=True)
@click.option("--device", default="cpu", show_default=True)
def main(patches: int, rounds: int, device: str) -> None:
    """Print a table."""
    torch.manual_seed(0)
    model = timm.create_model("resnet18", num_classes=4).eval()
    images = torch.randn(patches, 3, 224, 224).to(device)
    for attribution in ("gradient", "deeplift"):
        every = maps(LAYERS, ("none", "backward-hook", "centred-hook"), attribution)
        network = Network.of(model, every, torch.zeros(1, 3, 224, 224), device=images.device)
        one = maps(LAYERS[:1], ("none",), attribution)
        cases = {
            "three layers": (1, maps(LAYERS, ("none",), attribution)),
            "two targets": (2, one),
            "three targets": (3, one),
            "none and backward-hook": (1, maps(LAYERS[:1], ("none", "backward-hook"), attribution)),
            "none and centred-hook": (1, maps(LAYERS[:1], ("none", "centred-hook"), attribution)),
        }
        for name, (targets, some) in cases.items():
            seconds(network, images, targets, some)  # warm, baselines recorded
            pairs = [
                (seconds(network, images, 1, one), seconds(network, images, targets, some))
                for _ in range(rounds)
            ]
            ratio = median(many / single for single, many in pairs)
            print(f"{attribution:10} {name:24} {ratio:.2f} × one map", flush=True)


if __name__ == "__main__":
    main()
