"""The heatmap as a pyramidal OME-TIFF, for QuPath, Bio-Formats, OMERO and libvips."""

from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np
import tifffile

from wsi_saliency.files import writing
from wsi_saliency.heatmap.ome_xml import ome_xml
from wsi_saliency.heatmap.pyramid import TILE

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

    from wsi_saliency.geometry import Size
    from wsi_saliency.heatmap.ome_zarr import Heatmap

BIGTIFF_BYTES = 2 * 10**9
"""Above this many bytes, uncompressed and over all levels, the file is a BigTIFF."""


def write_ome_tiff(path: Path, heatmap: Heatmap) -> None:
    """Write the levels of ``heatmap`` as SubIFDs of a float32 image for each channel, without a predictor.

    Tiles of zeros are written too: readers differ on what a missing tile means. Memory: one row of tiles of
    the finest level, and as much again for its compressed tiles.

    Raises
    ------
    OutputError
        If the file cannot be written.
    """
    sizes, channels = heatmap.level_sizes, len(heatmap.info.channels)
    xml = ome_xml(heatmap.info, heatmap.size, sizes[0], pixels_in="tiff")
    first: dict[str, Any] = {"description": xml, "software": "wsi-saliency", "subifds": len(sizes) - 1}
    with (
        writing(path),
        tifffile.TiffWriter(path, bigtiff=needs_bigtiff(sizes, channels), byteorder="<", ome=False) as tiff,
    ):
        for level, size in enumerate(sizes):
            tags = first if level == 0 else {"subfiletype": 1}
            cell = heatmap.info.cell_mpp(level)
            tiff.write(
                _tiles(heatmap, level),
                shape=(size.h, size.w) if channels == 1 else (channels, size.h, size.w),
                dtype=np.float32,
                photometric="minisblack",
                tile=(TILE, TILE),
                compression="zlib",
                predictor=False,
                resolution=(1e4 / cell.x, 1e4 / cell.y),
                resolutionunit="CENTIMETER",
                metadata=None,
                buffersize=TILE * TILE * 4 * tiles_across(size),
                **tags,
            )


def needs_bigtiff(sizes: list[Size], channels: int = 1) -> bool:
    """Whether levels of these sizes, float32, may not fit the 32-bit offsets of a classic TIFF."""
    return channels * sum(size.w * size.h * 4 for size in sizes) > BIGTIFF_BYTES


def tiles_across(size: Size) -> int:
    """Tiles in one row of a level."""
    return -(-size.w // TILE)


def _tiles(heatmap: Heatmap, level: int) -> Iterator[NDArray[np.float32]]:
    """Tiles (TILE, TILE) of a level, channel by channel, row by row; one row of tiles is read at a time."""
    size = heatmap.level_sizes[level]
    for channel, cell_y in product(range(len(heatmap.info.channels)), range(0, size.h, TILE)):
        rows = heatmap.read(level, slice(cell_y, cell_y + TILE), channel=channel)
        for cell_x in range(0, size.w, TILE):
            tile = np.zeros((TILE, TILE), np.float32)
            part = rows[:, cell_x : cell_x + TILE]
            tile[: part.shape[0], : part.shape[1]] = part
            yield tile
