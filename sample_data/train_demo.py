"""Train and measure the ``demo`` classifier on drawn tissue.

The network is a narrow ResNet with one logit. Its head has weights ≥ 0 on features ≥ 0, and features of
normal tissue are pushed to 0 while it learns: the logit is a sum of evidence for tumour, so that where
nothing speaks for tumour neither features nor gradients remain.
"""

from __future__ import annotations

import argparse
import io
import itertools
import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import tifffile
import timm
import torch
from make_sample import MPP, SEED, SLIDE_H, SLIDE_W, Scene, Stain, draw_scene
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from scipy.stats import rankdata
from torch import nn
from torch.nn import functional as F

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from numpy.typing import NDArray

WEIGHTS = Path(__file__).parents[1] / "wsi_saliency" / "models" / "demo.safetensors"
ARCHITECTURE = "resnet18"
MODEL_ARGS: dict[str, Any] = {
    "layers": [1, 1, 1, 1],
    "channels": [24, 48, 72, 96],
    "stem_type": "deep",
    "stem_width": 8,
}
PATCH = 224
CELL = 32  # pixels per cell of the last features
MEAN = STD = (0.5, 0.5, 0.5)
TRAIN_SEEDS, EVALUATION_SEEDS = range(1000, 1048), range(5000, 5016)
SCENE = 1536  # pixels
TUMOUR_FROM = 0.15  # share of nest from which a patch is called tumour
NOTE = "Trained on drawn tissue, for trying the program; no medical meaning."


# -------------------------------------------------------------------------------------------- patches


def _as_slide(scene: Scene, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Return the image after JPEG at the quality of some scanner."""
    file = io.BytesIO()
    Image.fromarray(scene.image).save(file, "JPEG", quality=int(rng.integers(45, 92)), subsampling=2)
    return np.asarray(Image.open(file))


def _corners(scene: Scene, rng: np.random.Generator, n: int) -> list[tuple[int, int]]:
    """Upper left corners (row, column): a third anywhere, the rest centred on nests, tissue and artefacts."""
    height, width = scene.nests.shape
    normal = scene.tissue & ~scene.nests
    kinds = [(scene.nests, 0.40), (normal, 0.30), (scene.artefacts, 0.12), (np.ones_like(normal), 0.18)]
    corners = []
    for mask, share in kinds:
        inside = np.flatnonzero(mask)
        for flat in rng.choice(inside, round(n * share)) if len(inside) else ():
            row, column = divmod(int(flat), width)
            top, left = row - PATCH // 2, column - PATCH // 2
            corners.append((min(max(top, 0), height - PATCH), min(max(left, 0), width - PATCH)))
    return corners


def sample_patches(seeds: Iterable[int], n: int) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Draw a section for each seed and cut about ``n`` patches from it.

    Returns
    -------
    patches
        (N, 224, 224, 3) uint8 RGB at 0.5 µm per pixel, with JPEG artefacts.
    nest_share
        (N, 7, 7) float32: share of each 32-pixel cell that is tumour nest.
    """
    patches, shares = [], []
    for seed in seeds:
        rng = np.random.default_rng([seed, 2])
        scene = draw_scene(seed, SCENE, SCENE)
        image = _as_slide(scene, rng)
        for top, left in _corners(scene, rng, n):
            where = slice(top, top + PATCH), slice(left, left + PATCH)
            patches.append(image[where])
            cells = scene.nests[where].reshape(PATCH // CELL, CELL, PATCH // CELL, CELL)
            shares.append(cells.mean(axis=(1, 3), dtype=np.float32))
    return np.stack(patches), np.stack(shares)


def _augment(batch: torch.Tensor, share: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Turn and mirror the batch; vary stain strength per channel (in optical density) and brightness."""
    turns = int(torch.randint(4, ()))
    batch, share = torch.rot90(batch, turns, (2, 3)), torch.rot90(share, turns, (1, 2))
    if torch.rand(()) < 0.5:
        batch, share = batch.flip(3), share.flip(2)
    shape = (len(batch), 3, 1, 1)
    strength = 1 + 0.18 * torch.randn(len(batch), 1, 1, 1) + 0.08 * torch.randn(shape)
    batch = batch.clamp_min(1 / 255) ** strength.clamp(0.5, 1.6)
    batch = batch * (1 + 0.04 * torch.randn(len(batch), 1, 1, 1) + 0.015 * torch.randn(shape))
    return (batch + 0.01 * torch.randn_like(batch)).clamp(0, 1), share


def _as_input(patches: NDArray[np.uint8]) -> torch.Tensor:
    """(N, H, W, 3) uint8 to (N, 3, H, W) float32 in 0..1."""
    return torch.from_numpy(patches).permute(0, 3, 1, 2).float() / 255


def _normalise(batch: torch.Tensor) -> torch.Tensor:
    return (batch - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]


# ------------------------------------------------------------------------------------------- training


def new_model() -> nn.Module:
    """Build the untrained classifier."""
    model: nn.Module = timm.create_model(ARCHITECTURE, pretrained=False, num_classes=1, **MODEL_ARGS)
    return model


def load_model(weights: Path = WEIGHTS) -> nn.Module:
    """Load the trained classifier in eval mode, strictly, as its metadata says."""
    with safe_open(weights, "pt") as file:
        metadata = file.metadata()
    args = json.loads(metadata["model_args"])
    model: nn.Module = timm.create_model(metadata["architecture"], pretrained=False, num_classes=1, **args)
    model.load_state_dict(load_file(weights))
    return model.eval()


def _loss(model: Any, batch: torch.Tensor, share: torch.Tensor) -> torch.Tensor:
    """Score patches, cells and silence.

    Cross-entropy of the patch (those with a sliver of nest left out), a hinge that wants evidence from
    each cell of a nest, and an L1 penalty on the features of cells without nest, in the last stage and,
    relative to their strength in nests, in the two before it.
    """
    features, (eighth, sixteenth) = model.forward_intermediates(batch, indices=[2, 3])
    logit = model.forward_head(features)[:, 0]
    total = share.mean((1, 2))
    clear = (total == 0) | (total >= TUMOUR_FROM)
    patch = F.binary_cross_entropy_with_logits(logit[clear], (total[clear] > 0).float())
    evidence = torch.einsum("nchw,c->nhw", features, model.fc.weight[0])
    nest, normal = share > 0.6, share == 0
    missing = F.relu(15 - evidence)[nest].sum() / nest.sum().clamp_min(1)
    noise = (evidence + features.mean(1) * 5)[normal].mean()
    loss: torch.Tensor = patch + 0.08 * missing + 0.25 * noise
    loss = loss + 0.1 * _chatter(eighth, share) + 0.2 * _chatter(sixteenth, share)
    return loss


def _chatter(features: torch.Tensor, share: torch.Tensor) -> torch.Tensor:
    """Mean feature in cells without nest over mean feature in nests."""
    mean, times = features.mean(1), features.shape[2] // share.shape[1]
    share = share.repeat_interleave(times, 1).repeat_interleave(times, 2)
    in_nests = mean.detach()[share > 0.6].sum() / (share > 0.6).sum().clamp_min(1)
    return mean[share == 0].mean() / in_nests.clamp_min(0.05)


def train(steps: int, batch_size: int, seed: int) -> nn.Module:
    """Draw the training sections and fit the classifier to their patches."""
    torch.manual_seed(seed)
    torch.use_deterministic_algorithms(True)
    patches, shares = sample_patches(TRAIN_SEEDS, 80)
    print(f"{len(patches)} patches, {(shares.mean((1, 2)) >= TUMOUR_FROM).mean():.0%} tumour", flush=True)
    model: Any = new_model().train()
    with torch.no_grad():
        model.fc.weight.fill_(0.3)
        model.fc.bias.fill_(-2.0)
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 3e-3, total_steps=steps, pct_start=0.15)
    for step in range(steps):
        chosen = torch.randint(len(patches), (batch_size,))
        batch, share = _augment(_as_input(patches[chosen.numpy()]), torch.from_numpy(shares)[chosen])
        loss = _loss(model, _normalise(batch), share)
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        schedule.step()
        with torch.no_grad():
            model.fc.weight.clamp_(min=0)
        if step % 50 == 0:
            print(f"step {step}: loss {loss.item():.3f}", flush=True)
    return model.eval()  # type: ignore[no-any-return]


def save_model(model: nn.Module, path: Path = WEIGHTS) -> None:
    """Write weights and everything that is needed to use them."""
    metadata = {
        "architecture": ARCHITECTURE,
        "model_args": json.dumps(MODEL_ARGS),
        "patch": str(PATCH),
        "mpp": str(MPP),
        "mean": json.dumps(MEAN),
        "std": json.dumps(STD),
        "class_names": json.dumps(["tumour"]),
        "note": NOTE,
    }
    save_file({name: value.contiguous() for name, value in model.state_dict().items()}, path, metadata)
    path.chmod(0o644)


# ------------------------------------------------------------------------------------------ measuring


@torch.no_grad()
def predict(model: nn.Module, patches: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Logit of each patch; (N,) float32 for (N, 224, 224, 3) uint8."""
    logits = [model(_normalise(_as_input(patches[i : i + 32])))[:, 0] for i in range(0, len(patches), 32)]
    return torch.cat(logits).numpy()


def auroc(scores: NDArray[np.floating], positive: NDArray[np.bool_]) -> float:
    """Area under the ROC curve by rank sums (Mann-Whitney), ties counted half."""
    n, m = int(positive.sum()), int((~positive).sum())
    return float((rankdata(scores)[positive].sum() - n * (n + 1) / 2) / (n * m))


def _smoothed(_: nn.Module, to_input: Any, __: Any) -> tuple[torch.Tensor]:
    """Average the gradient that leaves a strided convolution over 2 x 2 shifts (the backward hook)."""
    return (F.avg_pool2d(F.pad(to_input[0], (1, 0, 1, 0), mode="replicate"), 2, stride=1),)


def patch_maps(
    model: nn.Module, patches: NDArray[np.uint8], layer: str, *, smooth: bool, times_activation: bool
) -> NDArray[np.float32]:
    """Explain each patch at a layer: channel mean of the gradient, or of gradient × activation; (N, h, w).

    A second, plain way to what the package computes, to check the classifier before the package does.
    """
    kept: dict[str, torch.Tensor] = {}

    def keep(_: nn.Module, __: Any, output: torch.Tensor) -> torch.Tensor:
        kept["activation"] = output.detach().requires_grad_()
        return kept["activation"] * 1

    hooks = [model.get_submodule(layer).register_forward_hook(keep)]
    if smooth:
        strided = [m for m in model.modules() if isinstance(m, nn.Conv2d) and max(m.stride) > 1]
        hooks += [m.register_full_backward_hook(_smoothed) for m in strided]
    try:
        logit = model(_normalise(_as_input(patches)))
        (gradient,) = torch.autograd.grad(logit.sum(), kept["activation"])
    finally:
        for hook in hooks:
            hook.remove()
    values = gradient * kept["activation"].detach() if times_activation else gradient
    return values.mean(1).numpy()


def contrast(model: nn.Module, scene: Scene, layer: str, *, smooth: bool, times_activation: bool) -> float:
    """Mean |saliency| of cells in nests over that of other cells in tissue; patches laid edge to edge."""
    inside, outside = [], []
    for windows in _in_batches(_windows_in_tissue(scene), 32):
        patches = np.stack([scene.image[where] for where in windows])
        maps = np.abs(patch_maps(model, patches, layer, smooth=smooth, times_activation=times_activation))
        cell = PATCH // maps.shape[1]
        middle = np.s_[:, cell // 2 :: cell, cell // 2 :: cell]
        nests = np.stack([scene.nests[where] for where in windows])[middle]
        tissue = np.stack([scene.tissue[where] for where in windows])[middle]
        inside.append(maps[nests])
        outside.append(maps[tissue & ~nests])
    return float(np.concatenate(inside).mean() / np.concatenate(outside).mean())


def _in_batches(
    windows: list[tuple[slice, slice]], size: int
) -> Iterator[list[tuple[slice, slice]]]:  # itertools.batched needs Python 3.12
    for start in range(0, len(windows), size):
        yield windows[start : start + size]


def _windows_in_tissue(scene: Scene) -> list[tuple[slice, slice]]:
    """Rows and columns of the patches, edge to edge, that are at least a tenth tissue."""
    rows, columns = (range(0, length - PATCH + 1, PATCH) for length in scene.nests.shape)
    windows = [(slice(y, y + PATCH), slice(x, x + PATCH)) for y in rows for x in columns]
    return [where for where in windows if scene.tissue[where].mean() >= 0.1]


def _sample_scene() -> Scene:
    """Return the sample section with the pixels of the slide as it was written."""
    scene = draw_scene(SEED, SLIDE_W, SLIDE_H, Stain())
    slide = tifffile.imread(Path(__file__).parent / "tumour_nests.svs")
    return replace(scene, image=slide)


def _print_contrasts(model: nn.Module) -> None:
    scene = _sample_scene()
    print("mean |saliency| in nests over that in other tissue, sample slide:")
    yes_no = (False, True)
    for layer, smooth, times in itertools.product(("layer1", "layer2", "layer3"), yes_no, yes_no):
        value = contrast(model, scene, layer, smooth=smooth, times_activation=times)
        method, attribution = ("none", "backward-hook")[smooth], ("gradient", "gradient-x-activation")[times]
        print(f"  {layer} {method:13} {attribution:21} {value:6.1f}", flush=True)


def main() -> None:
    """Train, save and measure."""
    parser = argparse.ArgumentParser(description="Train the demo classifier on drawn tissue and measure it.")
    parser.add_argument("--evaluate", action="store_true", help="only measure the weights that are there")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2, help="results depend on it in the last digits")
    parser.add_argument("--weights", type=Path, default=WEIGHTS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if not options.evaluate:
        save_model(train(options.steps, options.batch, options.seed), options.weights)
    patches, shares = sample_patches(EVALUATION_SEEDS, 100)
    logits, share = predict(load_model(options.weights), patches), shares.mean((1, 2))
    clear = (share == 0) | (share >= TUMOUR_FROM)
    print(f"AUROC {auroc(logits[clear], share[clear] > 0):.4f} on {clear.sum()} patches")
    print(f"AUROC {auroc(logits, share >= TUMOUR_FROM):.4f} on all {len(share)}, slivers of nest as normal")
    right = (logits[clear] > 0) == (share[clear] > 0)
    print(f"accuracy {right.mean():.4f} at probability 0.5")
    _print_contrasts(load_model(options.weights))


if __name__ == "__main__":
    main()
