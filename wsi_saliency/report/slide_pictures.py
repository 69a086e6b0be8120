"""Pictures of a slide's page: the slide, each map as a layer to lay over it, the strongest patches."""

from __future__ import annotations

import io
import math
from base64 import b64encode
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from wsi_saliency.geometry import Region, Size
from wsi_saliency.heatmap.colours import ColourScale
from wsi_saliency.heatmap.overview import map_on_region, map_on_thumbnail
from wsi_saliency.heatmap.strongest import strongest_patches

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from wsi_saliency.heatmap.ome_zarr import Heatmap
    from wsi_saliency.heatmap.result import MapRecord, Result
    from wsi_saliency.heatmap.strongest import StrongPatch
    from wsi_saliency.slides.slide import Slide

THUMBNAIL_BYTES, CROP_BYTES = 600_000, 40_000
"""Most bytes of the slide's picture, and of each of a patch's two; all pictures make 2 MB at most."""

MAP_PIXELS = 800_000
"""Pixels of all layers together, a byte each before compression."""

STRONGEST = 8
_CROP = 224
_QUALITIES = (85, 70, 50, 30, 15)


@dataclass(frozen=True)
class Layer:
    """A map for one target, to be laid over the slide.

    Parameters
    ----------
    name
        Map and target.
    channel
        What the files call it.
    target
        Name of the target.
    address
        The picture, PNG with opacity, as an address; empty where nothing is shown.
    scale
        What its colours mean.
    """

    name: str
    channel: str
    target: str
    address: str
    scale: ColourScale

    @property
    def gradient(self) -> str:
        """The colours as CSS, from the lowest value to the highest."""
        table = self.scale.table[:: len(self.scale.table) // 15]
        return ", ".join(f"rgb({r} {g} {b} / {a / 255:.2f})" for r, g, b, a in table.tolist())


@dataclass(frozen=True)
class Patch:
    """One of the strongest patches, and its pictures as addresses."""

    found: StrongPatch
    tissue: str
    overlaid: str


def picture_address(kind: str, data: bytes) -> str:
    """Write a picture into an address."""
    return f"data:image/{kind};base64,{b64encode(data).decode('ascii')}"


def thumbnail_address(thumbnail: NDArray[np.uint8]) -> str:
    """Return a picture (H, W, 3) uint8 RGB as the address of a JPEG."""
    return picture_address("jpeg", jpeg(thumbnail, THUMBNAIL_BYTES))


def jpeg(rgb: NDArray[np.uint8], most: int) -> bytes:
    """Compress a picture (H, W, 3) uint8 RGB, more if need be, into ``most`` bytes if that is possible."""
    for quality in _QUALITIES:
        buffer = io.BytesIO()
        Image.fromarray(rgb).save(buffer, "JPEG", quality=quality)
        if buffer.tell() <= most:
            break
    return buffer.getvalue()


def layers(result: Result, size: Size) -> Iterator[Layer]:
    """Make a layer of each map and target, at most as large as a thumbnail of ``size`` pixels.

    As in the overview, a target without any positive patch has an empty layer, unless colours are fixed.
    """
    share = MAP_PIXELS / (len(result.maps) * len(result.targets) * size.w * size.h)
    shrunk = min(1.0, math.sqrt(share))
    small = Size(max(1, int(size.w * shrunk)), max(1, int(size.h * shrunk)))
    for found in result.maps:
        heatmap = result.heatmap(found.spec)
        for number, target in enumerate(result.targets):
            scale, address = scale_of(found, number), ""
            if not result.is_dark(number):
                values = map_on_thumbnail(heatmap, small, number)
                address = picture_address("png", _layer_png(scale, values))
            name = " · ".join([found.spec.name, target] if len(result.targets) > 1 else [found.spec.name])
            yield Layer(name, found.channels[number], target, address, scale)


def scale_of(found: MapRecord, channel: int) -> ColourScale:
    """Return the colours of the values that viewers display."""
    window = found.windows[channel]
    return ColourScale.displaying(window.start, window.end, signed=found.signed)


def _layer_png(scale: ColourScale, values: NDArray[np.float32]) -> bytes:
    """Return the picture of a map with a palette, which takes a third of the bytes of four channels."""
    picture = Image.fromarray(scale.indices(values))
    palette = scale.palette
    picture.putpalette(palette[:, :3].tobytes())
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", transparency=palette[:, 3].tobytes(), compress_level=6)
    return buffer.getvalue()


def strongest(result: Result, slide: Slide) -> list[Patch]:
    """Cut out the patches in which the first map is strongest for the first target."""
    first = result.maps[0]
    heatmap, scale = result.heatmap(first.spec), scale_of(first, 0)
    chosen = strongest_patches(result, STRONGEST)[first.spec, 0]
    return [_cut_out(slide, heatmap, scale, found, coloured=not result.is_dark(0)) for found in chosen]


def _cut_out(
    slide: Slide, heatmap: Heatmap, scale: ColourScale, found: StrongPatch, *, coloured: bool
) -> Patch:
    region, size = Region(found.x, found.y, found.w, found.h), Size(_CROP, _CROP)
    tissue = slide.read(region, size)
    overlaid = Image.fromarray(tissue)
    if coloured:
        colours = Image.fromarray(scale(map_on_region(heatmap, region, size)))
        overlaid.paste(colours, mask=colours)
    addresses = (picture_address("jpeg", jpeg(rgb, CROP_BYTES)) for rgb in (tissue, np.asarray(overlaid)))
    return Patch(found, *addresses)
