"""Small networks of patch embeddings and tokens, for tests."""

from __future__ import annotations

import timm
import torch
from torch import Tensor, nn


def small_vit(**how: object) -> nn.Module:
    """A float64 vision transformer of 4 × 6 tokens of 8 px, with a class token unless told otherwise."""
    return _tame(
        "vit_tiny_patch16_224", img_size=(32, 48), patch_size=8, embed_dim=24, depth=3, num_heads=3, **how
    )


def registered_vit() -> nn.Module:
    """One with four register tokens and a class token, of 4 × 6 tokens of 7 px."""
    return _tame(
        "vit_small_patch14_reg4_dinov2", img_size=(28, 42), patch_size=7, embed_dim=24, depth=3, num_heads=3
    )


def small_swin() -> nn.Module:
    """A float64 Swin transformer of 64 × 96 px, whose stages give (N, h, w, C)."""
    return _tame(
        "swin_tiny_patch4_window7_224",
        img_size=(64, 96),
        window_size=4,
        embed_dim=8,
        depths=(2, 2),
        num_heads=(2, 2),
    )


def _tame(name: str, **how: object) -> nn.Module:
    torch.manual_seed(0)
    net = timm.create_model(name, num_classes=3, **how).double().eval()
    for p in net.parameters():
        nn.init.normal_(p, std=0.3)  # timm's own are so small that nothing but the bias is heard
    return net.requires_grad_(False)


class SpotTokens(nn.Module):
    """Tokens (N, p + L, C) that react to the dark pixels of their own patch, behind p tokens of other kinds.

    The answer is the squared sum of all tokens. A ``scrambled`` one has them window by window.
    """

    def __init__(self, stride: int = 8, others: int = 2, *, scrambled: bool = False, last: int = 0) -> None:
        super().__init__()
        self.stride, self.scrambled = stride, scrambled
        self.proj = nn.Conv2d(3, 4, stride, stride)
        nn.init.constant_(self.proj.weight, -1 / (3 * stride**2))
        nn.init.ones_(self.proj.bias)
        self.first = nn.Parameter(torch.full((1, others, 4), 0.5))
        self.final = nn.Parameter(torch.full((1, last, 4), 0.5))
        self.block, self.head = nn.Identity(), nn.Linear(4, 2)
        nn.init.constant_(self.head.weight, 0.5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.proj(x)
        n, c, h, w = x.shape
        if self.scrambled:
            x = x.view(n, c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 3, 5, 1).reshape(n, h * w, c)
        else:
            x = x.flatten(2).transpose(1, 2)
        x = torch.cat([self.first.expand(n, -1, -1), x, self.final.expand(n, -1, -1)], 1)
        return self.head(self.block(x).square().sum(1))
