"""Slides made from arrays, in the formats that scanners and conversion programs write.

    levels = pyramid(rgb, (1, 2, 8))                  # box averages, level 0 first
    write_svs(path, levels, mpp=0.5, power=20)        # OpenSlide opens it as "aperio"
    write_tiff(path, levels, mpp=0.5)                 # tiled or stripped plain TIFF, resolution tags in cm
    write_ome_tiff(path, levels, mpp=0.25)            # SubIFD pyramid, PhysicalSizeX/Y

All pictures are (h, w, 3) uint8 RGB. ``quality=None`` stores them lossless (deflate), a number as JPEG. None
of the writers resamples: what is passed as a level is what the file has, so factors need not be whole.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import tifffile

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

TILE = 256


def pyramid(rgb: NDArray[np.uint8], factors: Sequence[int] = (1, 2, 4)) -> list[NDArray[np.uint8]]:
    """Average blocks of ``factor`` pixels; what does not fill a block at the far edges is cut off."""
    return [reduced(rgb, factor) for factor in factors]


def reduced(rgb: NDArray[np.uint8], factor: int) -> NDArray[np.uint8]:
    """Average (h, w, 3) uint8 over ``factor`` × ``factor`` pixels to (h // factor, w // factor, 3)."""
    h, w = rgb.shape[0] // factor, rgb.shape[1] // factor
    blocks = rgb[: h * factor, : w * factor].reshape(h, factor, w, factor, 3)
    sums = blocks.sum(axis=(1, 3), dtype=np.uint32)
    return np.asarray((sums + factor**2 // 2) // factor**2, np.uint8)


def noise(h: int, w: int, seed: int = 0) -> NDArray[np.uint8]:
    """Draw (h, w, 3) independent uniform uint8: the picture in which any misplacement shows."""
    return np.random.default_rng(seed).integers(0, 256, (h, w, 3), np.uint8)


def section(w: int, h: int, *boxes: tuple[int, int, int, int], seed: int = 0) -> NDArray[np.uint8]:
    """Draw (h, w, 3) glass with ``boxes`` (x, y, w, h) of stained tissue, grainy everywhere."""
    rng = np.random.default_rng(seed)
    rgb = np.full((h, w, 3), 250.0) + rng.normal(0, 1, (h, w, 3))
    for x, y, box_w, box_h in boxes:
        part = rgb[y : y + box_h, x : x + box_w]
        part[:] = (175, 90, 150) + rng.normal(0, 15, part.shape[:2])[..., None]
    return np.clip(np.rint(rgb), 0, 255).astype(np.uint8)


def write_svs(
    path: Path,
    levels: Sequence[NDArray[np.uint8]],
    mpp: float | None = 0.5,
    power: float | None = 20,
    quality: int | None = None,
    tile: int = TILE,
) -> Path:
    """Write a tiled Aperio-like slide without label and macro; ``mpp`` and ``power`` may be left out."""
    h, w = levels[0].shape[:2]
    facts = {"AppMag": power, "MPP": mpp}
    first = f"Aperio Image Library v11.2.1 \n{w}x{h} [0,0 {w}x{h}] ({tile}x{tile})"
    description = "|".join([first, *(f"{name} = {fact}" for name, fact in facts.items() if fact is not None)])
    with tifffile.TiffWriter(path) as tiff:
        for number, level in enumerate(levels):
            how = _how(quality) | {"tile": (tile, tile), "description": description}
            tiff.write(level, photometric="rgb", metadata=None, subfiletype=int(number > 0), **how)
    return path


def write_tiff(
    path: Path,
    levels: Sequence[NDArray[np.uint8]],
    mpp: float | None = 0.5,
    quality: int | None = None,
    tile: int | None = TILE,
    **how: Any,
) -> Path:
    """Write a plain multi-page TIFF; ``tile=None`` writes strips, which OpenSlide refuses.

    ``mpp`` goes into the resolution tags of level 0 in centimetres, none at all leaves the unit away. Further
    arguments are those of `tifffile.TiffWriter.write` and apply to all levels.
    """
    layout: dict[str, Any] = {"rowsperstrip": 64} if tile is None else {"tile": (tile, tile)}
    options = {"photometric": "rgb"} | _how(quality) | layout | how
    with tifffile.TiffWriter(path) as tiff:
        for number, level in enumerate(levels):
            options["resolution"] = (1, 1) if mpp is None else (1e4 / mpp, 1e4 / mpp)
            options["resolutionunit"] = "NONE" if mpp is None else "CENTIMETER"
            tiff.write(level, metadata=None, subfiletype=int(number > 0), **(options | how))
    return path


def write_ome_tiff(
    path: Path,
    levels: Sequence[NDArray[np.uint8]],
    mpp: float | None = 0.5,
    quality: int | None = None,
    tile: int | None = TILE,
    **metadata: Any,
) -> Path:
    """Write an OME-TIFF with the coarser levels as SubIFDs; ``metadata`` goes into the OME-XML as it is."""
    layout: dict[str, Any] = {"rowsperstrip": 64} if tile is None else {"tile": (tile, tile)}
    options = {"photometric": "rgb"} | _how(quality) | layout
    sizes = {} if mpp is None else {f"PhysicalSize{axis}": mpp for axis in "XY"}
    with tifffile.TiffWriter(path, ome=True) as tiff:
        tiff.write(levels[0], subifds=len(levels) - 1, metadata={"axes": "YXS"} | sizes | metadata, **options)
        for level in levels[1:]:
            tiff.write(level, subfiletype=1, **options)
    return path


def _how(quality: int | None) -> dict[str, Any]:
    if quality is None:
        return {"compression": "deflate"}
    return {"compression": "jpeg", "compressionargs": {"level": quality}}
