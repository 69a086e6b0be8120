"""A result as the page shows it: its facts, tiles of its slide, and tiles of its maps."""

from __future__ import annotations

import json
from base64 import b64encode
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from wsi_saliency.errors import SlideError, WsiSaliencyError
from wsi_saliency.heatmap.colours import ColourScale
from wsi_saliency.heatmap.overview import Predictions, slide_in_overview
from wsi_saliency.heatmap.pyramid import TILE as MAP_TILE
from wsi_saliency.heatmap.strongest import strongest_patches
from wsi_saliency.messages import storable
from wsi_saliency.slides.opening import open_slide
from wsi_saliency.urls import located
from wsi_saliency.viewer.tiles import TILE as SLIDE_TILE
from wsi_saliency.viewer.tiles import SlideTiles, as_jpeg

if TYPE_CHECKING:
    from wsi_saliency.geometry import Size
    from wsi_saliency.heatmap.ome_zarr import Heatmap
    from wsi_saliency.heatmap.result import MapRecord, Result
    from wsi_saliency.settings import CacheSettings
    from wsi_saliency.slides.slide import Slide
    from wsi_saliency.urls import Location

STRONGEST = 20
_THUMBNAIL = 480


class Shown:
    """A result that is looked at; files are opened when they are needed.

    Parameters
    ----------
    result
        The result.
    slide
        Where its slide is, if it is not where it was.
    alone
        Whether it is the only one that is shown.
    cache
        Settings that name the cache of slides from URLs.

    Raises
    ------
    SlideError
        If ``slide`` is given, and cannot be read or is another one.
    """

    def __init__(
        self,
        result: Result,
        slide: Location | None = None,
        *,
        alone: bool = True,
        cache: CacheSettings | None = None,
    ) -> None:
        self._result, self._alone, self._cache = result, alone, cache
        self._heatmaps: tuple[Heatmap, ...] = tuple(result.heatmap(found.spec) for found in result.maps)
        self._size: Size = self._heatmaps[0].info.slide_size
        self._missing = ""
        self._tiles: SlideTiles | None = None
        if slide is not None:
            self._tiles = SlideTiles(_opened(slide, self._size, self._cache))
        else:
            self._find()

    def close(self) -> None:
        """Close the slide."""
        if self._tiles is not None:
            self._tiles.close()

    def _find(self) -> None:
        facts = self._result.record["slide"]
        path = located(facts.get("path") or facts["name"])
        try:
            if isinstance(path, Path) and path.stat().st_size != facts["bytes"]:
                raise SlideError(f"{path}: is another file now")
            self._tiles = SlideTiles(_opened(path, self._size, self._cache))
        except (OSError, WsiSaliencyError) as error:
            reason = str(error) if isinstance(error, WsiSaliencyError) else f"{path}: is not there any more"
            self._missing = (
                f"{reason}; the map is over the overview only. --slide PATH says where the slide is."
            )

    @cached_property
    def facts(self) -> bytes:
        """What the page has to know, as JSON."""
        info, record, result = self._heatmaps[0].info, self._result.record, self._result
        patches = strongest_patches(result, STRONGEST)
        notices = [self._missing, *record["slide"].get("warnings", []), *record["model"].get("notes", [])]
        facts = {
            "name": info.slide_name,
            "alone": self._alone,
            "slide": asdict(self._size) | {"mpp_x": info.slide_mpp.x, "mpp_y": info.slide_mpp.y},
            "tiles": self._tile_facts(),
            "notices": [storable(notice) for notice in notices if notice],
            "targets": [self._target(number) for number in range(len(result.targets))],
            "maps": [
                self._map(found, heatmap)
                | {
                    "strongest": [
                        [asdict(p) for p in patches[found.spec, c]] for c in range(len(found.channels))
                    ]
                }
                for found, heatmap in zip(result.maps, self._heatmaps, strict=True)
            ],
            "map_tile": MAP_TILE,
            "scales": {
                "magnitudes": _encoded(ColourScale.magnitudes(0, 1)),
                "diverging": _encoded(ColourScale.diverging(1)),
            },
        }
        return json.dumps(facts, allow_nan=False).encode()

    def _tile_facts(self) -> dict[str, int] | None:
        if self._tiles is None:
            return None
        layout = self._tiles.layout
        return {"size": SLIDE_TILE, "min_level": layout.min_level, "max_level": layout.max_level}

    def _target(self, number: int) -> dict[str, Any]:
        target, patches = self._result.record["targets"][number], self._result.record["patches"]["tissue"]
        said = Predictions(target["name"], patches, target["positive"], target["highest_probability"])
        return {"name": target["name"], "summary": str(said), "dark": self._result.is_dark(number)}

    def _map(self, found: MapRecord, heatmap: Heatmap) -> dict[str, Any]:
        return {
            "name": found.spec.name,
            "signed": found.signed,
            **asdict(heatmap.info.placement),
            "levels": [[size.w, size.h] for size in heatmap.level_sizes],
            "windows": [[w.lowest, w.highest, w.start, w.end] for w in found.windows],
        }

    def slide_tile(self, level: int, column: int, row: int) -> bytes | None:
        """Return a tile of the slide as JPEG, or None if there is none.

        Raises
        ------
        SlideError
            If the slide cannot be read there.
        """
        return None if self._tiles is None else self._tiles.jpeg(level, column, row)

    def map_tile(self, number: int, channel: int, level: int, column: int, row: int) -> bytes | None:
        """Return the values of a tile of a map, (h, w) float32 of the least byte first, or None."""
        if number >= len(self._heatmaps):
            return None
        heatmap = self._heatmaps[number]
        if level >= len(heatmap.levels) or channel >= len(heatmap.info.channels):
            return None
        left, top = column * MAP_TILE, row * MAP_TILE
        rows, columns = slice(top, top + MAP_TILE), slice(left, left + MAP_TILE)
        values = heatmap.read(level, rows, columns, channel=channel)
        return values.astype("<f4").tobytes() if values.size else None

    @cached_property
    def slide_picture(self) -> bytes:
        """The slide in the overview, as JPEG; white where there is no overview."""
        try:
            with Image.open(self._result.folder / self._result.files().overview) as overview:
                return as_jpeg(slide_in_overview(overview, self._size))
        except OSError:
            scale = _THUMBNAIL / max(self._size.w, self._size.h)
            shape = max(1, round(self._size.h * scale)), max(1, round(self._size.w * scale)), 3
            return as_jpeg(np.full(shape, 255, np.uint8))


def thumbnail(result: Result) -> bytes | None:
    """Return a small picture of a result's overview as JPEG, or None if it has none."""
    try:
        with Image.open(result.folder / result.files().overview) as overview:
            overview.thumbnail((_THUMBNAIL, _THUMBNAIL))
            return as_jpeg(overview.convert("RGB"))
    except OSError:
        return None


def summary(result: Result) -> list[str]:
    """Say of each target how many patches are predicted as it."""
    patches = result.record["patches"]["tissue"]
    return [
        str(Predictions(target["name"], patches, target["positive"], target["highest_probability"]))
        for target in result.record["targets"]
    ]


def _opened(path: Location, size: Size, cache: CacheSettings | None) -> Slide:
    slide = open_slide(path, mpp_required=False, cache=cache)
    if slide.size != size:
        slide.close()
        raise SlideError(
            f"{slide.shown}: is not the slide of this result: it has {slide.size.w} × {slide.size.h} pixels, "
            f"not {size.w} × {size.h}"
        )
    return slide


def _encoded(scale: ColourScale) -> str:
    return b64encode(scale.table.tobytes()).decode("ascii")
