"""Slides made for benchmarks: of any size, of one level, tile by tile."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import imagecodecs
import numpy as np
import tifffile

TILE = 256
Is = Callable[[int, int], bool]
"""Whether the tile of a column and a row is tissue."""


def banded(side: int) -> Is:
    """Put a band of tissue, a tile high, over the whole width, and one as wide over the whole height."""
    middle = side // TILE // 2
    return lambda column, row: middle in (column, row)


def full(column: int, row: int) -> bool:
    """Say that there is tissue everywhere."""
    return True


def write_tiled(path: Path, side: int, is_tissue: Is, mpp: float = 0.5, seed: int = 0) -> None:
    """Write a square slide of one level, of a few tiles over and over."""
    rng = np.random.default_rng(seed)
    glass = [_jpeg(np.clip(rng.normal(244, 1, (TILE, TILE, 3)), 0, 255))]
    tissue = [_jpeg(_tissue(rng)) for _ in range(8)]
    n = -(-side // TILE)

    def tiles() -> Iterator[bytes]:
        for row in range(n):
            for column in range(n):
                kinds = tissue if is_tissue(column, row) else glass
                yield kinds[(row * 5 + column) % len(kinds)]

    tifffile.imwrite(
        path,
        tiles(),
        shape=(side, side, 3),
        dtype=np.uint8,
        tile=(TILE, TILE),
        photometric="ycbcr",
        subsampling=(2, 2),
        compression="jpeg",
        resolution=(1e4 / mpp, 1e4 / mpp),
        resolutionunit="CENTIMETER",
        bigtiff=True,
    )


def _tissue(rng: np.random.Generator) -> np.ndarray:
    """Draw a tile of stained grain, as coarse as nuclei."""
    grain = np.kron(rng.normal(0, 25, (TILE // 8, TILE // 8)), np.ones((8, 8)))
    return np.clip(np.array((175, 90, 150)) + grain[..., None], 0, 255)


def _jpeg(rgb: np.ndarray) -> bytes:
    how = {"colorspace": "rgb", "outcolorspace": "ycbcr", "subsampling": "420"}
    return bytes(imagecodecs.jpeg8_encode(rgb.astype(np.uint8), level=85, **how))
