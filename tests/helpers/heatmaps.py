"""Stored maps: of noise, with facts that are awkward in every field."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, get_args

import numpy as np

from wsi_saliency.geometry import Mpp, Placement, Size
from wsi_saliency.heatmap.ome_zarr import Heatmap, HeatmapWriter
from wsi_saliency.heatmap.pyramid import HeatmapInfo
from wsi_saliency.settings import OmeZarrVersion

if TYPE_CHECKING:
    from pathlib import Path

VERSIONS = get_args(OmeZarrVersion)
INFO = HeatmapInfo(
    "böse 'slide'.svs",
    Size(40_000, 30_001),
    Mpp(0.2521, 0.2498),
    Placement(-3.5, 7.25, 8.01, 7.99),
    ("gradient · backward-hook · layer2 · tumour",),
    {"model": "demo", "layer": "layer2"},
)


def noise(h: int, w: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((h, w), dtype=np.float32) * np.float32(1e-4)


def named(channels: int) -> HeatmapInfo:
    """The same facts of a map of several channels; of one, it is `INFO`."""
    return replace(INFO, channels=(*INFO.channels, *(f"channel {i} & <more>" for i in range(1, channels))))


def written(path: Path, cells: np.ndarray, version: OmeZarrVersion = "0.4", rows: int = 100) -> Heatmap:
    """Write ``cells``, (h, w) or (C, h, w), in bands of ``rows`` rows."""
    cells = cells.reshape(-1, *cells.shape[-2:])
    channels, h, w = cells.shape
    writer = HeatmapWriter.create(path, Size(w, h), named(channels), version)
    for cell_y in range(0, h, rows):
        writer.write_rows(cell_y, cells[:, cell_y : cell_y + rows])
    return writer.finish()
