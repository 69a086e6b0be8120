"""Finished results made of planted maps and tiles, without a classifier and a slide."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from wsi_saliency.geometry import Mpp, Placement, Region, Size
from wsi_saliency.heatmap.ome_tiff import write_ome_tiff
from wsi_saliency.heatmap.ome_zarr import HeatmapWriter
from wsi_saliency.heatmap.pyramid import HeatmapInfo
from wsi_saliency.heatmap.result import (
    BOX_COLUMNS,
    TILES,
    MapFiles,
    MapRecord,
    Result,
    columns_of,
    probability_column,
    with_names,
    write_record,
)
from wsi_saliency.heatmap.tile_table import tile_table
from wsi_saliency.mapspec import MapSpec

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

SPECS = tuple(MapSpec(layer, "centred-hook", "deeplift") for layer in ("layer2", "layer3"))
SIZE, MPP, PLACEMENT = Size(1200, 800), Mpp(0.5, 0.25), Placement(-3.4, 5.3, 8.03, 7.96)


@dataclass(frozen=True)
class Planted:
    """What a planted result is of."""

    name: str = "slide.svs"
    slides: str = "/slides"
    size: Size = SIZE
    mpp: Mpp = MPP
    bounds: Region | None = None
    placement: Placement = PLACEMENT
    signed: bool = True
    targets: tuple[str, ...] = ("tumour",)
    classes: tuple[str, ...] = ("tumour",)
    output: str = "sigmoid"
    settings: tuple[tuple[str, Any], ...] = (("hotspots", 0),)

    def write(
        self,
        folder: Path,
        maps: Sequence[np.ndarray],
        tiles: Sequence[tuple[Sequence[float], Sequence[float], Sequence[float]]] = (),
    ) -> Result:
        """Write a result: ``maps`` are (C, h, w); a tile is its box, probabilities and saliency."""
        folder.mkdir(parents=True, exist_ok=True)
        specs = SPECS[: len(maps)]
        records = [
            self._map(folder, MapFiles.of(specs)[spec], spec, m) for spec, m in zip(specs, maps, strict=True)
        ]
        columns = [c for pairs in columns_of(specs, self.targets).values() for pair in pairs for c in pair]
        with tile_table(
            folder / TILES, [*BOX_COLUMNS, *map(probability_column, self.classes), *columns]
        ) as table:
            for box, probabilities, saliency in tiles:
                table.write([*box, "1.0000", *probabilities, *saliency])
        write_record(folder, self._record(records, len(tiles)))
        result = Result.read(folder)
        assert result is not None
        return result

    def _map(self, folder: Path, files: MapFiles, spec: MapSpec, values: np.ndarray) -> MapRecord:
        channels = tuple(f"DeepLIFT · {spec.layer} · {target}" for target in self.targets)
        info = HeatmapInfo(self.name, self.size, self.mpp, self.placement, channels)
        cells = Size(values.shape[2], values.shape[1])
        writer = HeatmapWriter.create(folder / files.ome_zarr, cells, info)
        writer.write_rows(0, values.astype(np.float32))
        heatmap = writer.finish()
        write_ome_tiff(folder / files.ome_tiff, heatmap)
        return MapRecord(
            spec,
            ("8",),
            self.signed,
            channels,
            {"reduction": 8},
            self.placement,
            cells,
            (0.0, 0.0),
            heatmap.windows,
        )

    def _record(self, records: Sequence[MapRecord], tiles: int) -> Mapping[str, Any]:
        bounds = self.bounds or Region(0, 0, self.size.w, self.size.h)
        return {
            "settings": dict(self.settings),
            "slide": {
                "name": self.name,
                "path": f"{self.slides}/{self.name}",
                "bytes": 5,
                "size": asdict(self.size),
                "mpp": asdict(self.mpp),
                "bounds": asdict(bounds),
            },
            "model": {"classes": list(self.classes), "output": self.output},
            "targets": [
                {"name": name, "index": index, "positive": 2, "highest_probability": 0.75}
                for index, name in enumerate(self.targets)
            ],
            "maps": with_names(records, self.targets),
            "patches": {"grid": tiles, "tissue": tiles},
        }
