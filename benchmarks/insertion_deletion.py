"""What insertion and deletion cost, against steps that are evaluated image by image.

    python benchmarks/insertion_deletion.py                 # resnet18, 100 patches, 224 px, 28 steps, CPU
    python benchmarks/insertion_deletion.py --patches 4
    python benchmarks/insertion_deletion.py --device cuda --batch 128

The yardstick follows RISE's definition patch by patch: at each step the pixels next in order are copied, and
the network, as the user has it, is run on that one image. Ours runs with one image per pass, which is the
same memory bound, and with more. All are timed in turn on two patches, then on the next two, and so on, so
that a change of the machine's speed meets all; the median of the ratios is printed. Peak memory is that of
the tensors PyTorch allocates, above what lives before: ours holds a copy of the network.
"""

from __future__ import annotations

import math
import statistics
import sys
from functools import partial
from pathlib import Path

import click
import timm
import torch
from torch import Tensor, nn
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).parent))

from methods import peak_mb, seconds

from wsi_saliency.evaluation.causal import CausalScorer, substrate
from wsi_saliency.evaluation.controls import random_maps

TARGET = 1
WANTED = 1.5


def image_by_image(net: nn.Module, images: Tensor, maps: Tensor) -> Tensor:
    """Curves (2, N, steps + 1): insertion and deletion, one image in each forward pass."""
    step = 8 * images.shape[3]
    curves = []
    for start, end in ((substrate(images, "blur"), images), (images, torch.zeros_like(images))):
        pairs = zip(start, end, maps, strict=True)
        curves.append(torch.stack([one_curve(net, s.clone(), e, m, step) for s, e, m in pairs]))
    return torch.stack(curves)


@torch.no_grad()
def one_curve(net: nn.Module, now: Tensor, end: Tensor, saliency: Tensor, step: int) -> Tensor:
    """Curve of one patch; ``now`` (3, H, W) becomes ``end`` on the way."""
    order = saliency.flatten().argsort(descending=True, stable=True)
    points = [answer(net, now)]
    for first in range(0, len(order), step):
        pixels = order[first : first + step]
        now.flatten(1)[:, pixels] = end.flatten(1)[:, pixels]
        points.append(answer(net, now))
    return torch.stack(points)


def answer(net: nn.Module, image: Tensor) -> Tensor:
    """Probability of the target."""
    return net(image[None]).softmax(1)[0, TARGET]


def ours(net: nn.Module, images: Tensor, maps: Tensor, batch: int) -> Tensor:
    """Do the same with the scorer, made anew: substrates and copy of the network are part of the price."""
    curves = CausalScorer(net, images, TARGET, batch_size=batch)(maps)
    return torch.stack([curves.insertion, curves.deletion])


@click.command()
@click.option("--network", default="resnet18", show_default=True)
@click.option("--patches", default=100, show_default=True)
@click.option("--side", default=224, show_default=True)
@click.option("--batch", "batches", multiple=True, default=[1, 2, 4, 8, 16], show_default=True)
@click.option("--device", default="cpu", show_default=True)
def main(network: str, patches: int, side: int, batches: tuple[int, ...], device: str) -> None:
    """Print the table."""
    torch.manual_seed(0)
    net = timm.create_model(network).eval().to(device)
    images = torch.randn(patches, 3, side, side)
    pairs = list(zip(images.split(2), random_maps(patches, side, side, 0).split(2), strict=True))
    few = pairs[0][0].to(device), pairs[0][1].to(device)
    print(
        f"torch {torch.__version__}, {device}, {torch.get_num_threads()} threads, {network}, "
        f"{patches} patches of {side} px, {math.ceil(side / 8)} steps"
    )
    theirs, here = image_by_image(net, *few).cpu(), ours(net, *few, max(batches))
    print(f"  largest relative difference of a curve's point: {((theirs - here) / theirs).abs().max():.1e}")
    jobs = {0: partial(image_by_image, net)} | {b: partial(ours, net, batch=b) for b in batches}
    times: dict[int, list[float]] = {batch: [] for batch in jobs}
    for x, maps in tqdm(pairs, unit="pair of patches"):
        for batch, job in jobs.items():
            times[batch].append(seconds(partial(job, x.to(device), maps.to(device)), device))
    megabytes = {batch: peak_mb(partial(job, *few), device) for batch, job in jobs.items()}
    for batch in batches:
        middle = statistics.median(a / b for a, b in zip(times[0], times[batch], strict=True))
        print(
            f"  image by image / ours, {batch:3d} per pass  {middle:5.2f} ×  (wanted ≥ {WANTED})  "
            f"{sum(times[0]):.1f} s / {sum(times[batch]):.1f} s   "
            f"{megabytes[0]:.0f} / {megabytes[batch]:.0f} MB"
        )


if __name__ == "__main__":
    main()
