"""What smoothing and attribution cost, against none and against Captum.

Each pair of functions is timed in turn, A B A B …, in one process, so that a change of the machine's speed
meets both; the median of the ratios is printed. Peak memory is that of the tensors PyTorch allocates.

    python benchmarks/methods.py                 # batch 16, 224 px, float32, resnet18 and resnet50
    python benchmarks/methods.py --device cuda --repeats 20
"""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable
from functools import partial

import click
import timm
import torch
from captum.attr import LayerDeepLift, LayerGradientXActivation, LayerIntegratedGradients
from torch import Tensor, nn

from wsi_saliency.mapspec import PLAIN, MapSpec
from wsi_saliency.saliency.folding import own_copy
from wsi_saliency.saliency.network import Network
from wsi_saliency.saliency.patches import PatchExplainer, explain_patches

Job = Callable[[], object]


def seconds(job: Job, device: str) -> float:
    """Time one call."""
    if device != "cpu":
        torch.cuda.synchronize()
    start = time.perf_counter()
    job()
    if device != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def ratio(a: Job, b: Job, repeats: int, device: str) -> tuple[float, float, float]:
    """Median of time(a) / time(b) over paired runs, and both medians in seconds."""
    a(), b()
    pairs = [(seconds(a, device), seconds(b, device)) for _ in range(repeats)]
    medians = [statistics.median(column) for column in zip(*pairs, strict=True)]
    return statistics.median(x / y for x, y in pairs), medians[0], medians[1]


def peak_mb(job: Job, device: str) -> float:
    """Largest sum of live tensor memory during one call, MB, above what lives before it."""
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        job()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profile:
        job()
    allocations = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    live = most = 0
    for event in sorted(allocations, key=lambda e: e.start_ns()):
        live += event.nbytes()
        most = max(most, live)
    return most / 2**20


def without_inplace(net: nn.Module) -> nn.Module:
    """Copy a network for Captum, which cannot explain in front of operations that work in place."""
    net = copy.deepcopy(net)
    for module in net.modules():
        if hasattr(module, "inplace"):
            module.inplace = False
    return net


def row(title: str, a: Job, b: Job, repeats: int, device: str, bound: str, *, memory: bool = True) -> None:
    """Time a pair and print it."""
    middle, first, second = ratio(a, b, repeats, device)
    megabytes = f"{peak_mb(a, device):6.0f} / {peak_mb(b, device):6.0f} MB" if memory else ""
    print(
        f"  {title:<58} {middle:5.2f} ×  ({first:.3f} s / {second:.3f} s; wanted {bound})  {megabytes}",
        flush=True,
    )


@click.command()
@click.option("--network", "networks", multiple=True, default=["resnet18", "resnet50"], show_default=True)
@click.option("--batch", default=16, show_default=True)
@click.option("--side", default=224, show_default=True)
@click.option("--repeats", default=7, show_default=True)
@click.option("--steps", default=50, show_default=True, help="Nodes of integrated gradients.")
@click.option("--device", default="cpu", show_default=True)
def main(networks: tuple[str, ...], batch: int, side: int, repeats: int, steps: int, device: str) -> None:
    """Print the table."""
    torch.manual_seed(0)
    x = torch.randn(batch, 3, side, side, device=device)
    print(f"torch {torch.__version__}, {device}, {torch.get_num_threads()} threads, batch {batch}, {side} px")
    for name in networks:
        compare(name, timm.create_model(name).eval().to(device), x, repeats, steps, device)


def dropped(*found: object) -> None:
    """Take a map, and keep nothing of it."""


def compare(name: str, net: nn.Module, x: Tensor, repeats: int, steps: int, device: str) -> None:
    """Print the rows of one network."""
    layer, target = "layer2", 1
    print(name)
    ours = partial(explain_patches, net, x, layer, target)
    targets = torch.full((len(x),), target, device=device)
    own = own_copy(net, x[:1], keep={layer})
    bounds = {"backward-hook": "≤ 1.05", "centred-hook": "≤ 1.05", "forward-hook": "≤ 1.15"}
    maps = {method: MapSpec(layer, method, "gradient") for method in (PLAIN, *bounds)}
    network = Network(own, tuple(maps.values()), baseline_image=torch.zeros_like(x[:1]))
    for method, bound in bounds.items():
        pair = (partial(network.explain, x, [targets], dropped, [maps[m]]) for m in (method, PLAIN))
        row(f"{method} / {PLAIN}", *pair, 3 * repeats, device, bound, memory=False)
    theirs = without_inplace(net)
    module = theirs.get_submodule(layer)
    captum = LayerGradientXActivation(theirs, module, multiply_by_inputs=False)
    lift = LayerDeepLift(theirs, module)
    for attribution, theirs_now, bound in (
        ("gradient", partial(captum.attribute, x, target), "≥ 1.5"),
        ("deeplift", partial(lift.attribute, x, torch.zeros_like(x), target), "≥ 4"),
    ):
        prepared = PatchExplainer(net, x, layer, attribution, "none")
        in_bf16 = PatchExplainer(net, x, layer, attribution, "none", precision="bf16")
        for how, explain in (
            ("one call", partial(ours, attribution, "none")),
            ("prepared", partial(prepared, x, target)),
            ("prepared, bf16", partial(in_bf16, x, target)),
        ):
            wanted = "–" if "bf16" in how else bound
            row(f"Captum / ours, {attribution}, {how}", theirs_now, explain, repeats, device, wanted)
    paths = LayerIntegratedGradients(theirs, theirs.get_submodule("layer3"))
    row(f"Captum / ours, integrated-gradients, {steps} steps, layer3",
        partial(paths.attribute, x, torch.zeros_like(x), target, n_steps=steps, internal_batch_size=len(x)),
        partial(explain_patches, net, x, "layer3", target, "integrated-gradients", "none", steps=steps),
        max(1, repeats // 3), device, "≥ 1.5")  # fmt: skip


if __name__ == "__main__":
    main()
