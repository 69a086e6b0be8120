"""One picture for the eye: the slide, the map over it, what the colours mean and how large things are."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import imagecodecs
import numpy as np
from PIL import Image, ImageDraw
from scipy import sparse

from wsi_saliency.files import writing
from wsi_saliency.geometry import Region, Size
from wsi_saliency.heatmap.colours import ColourScale
from wsi_saliency.heatmap.lettering import FAINT_INK, INK, font, lettered, upright
from wsi_saliency.heatmap.pyramid import Window, window_of
from wsi_saliency.heatmap.ticks import Ticks, length_label, nice_number

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from wsi_saliency.heatmap.ome_zarr import Heatmap
    from wsi_saliency.heatmap.pyramid import HeatmapInfo

LONGEST_PX = 2000
"""The picture is at most this long."""

MAX_BYTES = 5_000_000
"""The file is at most this large; pictures of very busy slides are made smaller."""

_MARGIN, _GAP, _HEADER, _FOOTER, _BAR = 40, 30, 160, 70, 180
_MIN_WIDTH, _SHORTEST_BAR, _LONGEST_BAR = 900, 90, 900
_TINY = 600
_PX_PER_TICK = 60
_FRAME = "#c9c9d0"
_FADED = 0.68 / 3, 0.12, 0.2 * 255
"""What remains of a pixel behind the map: of each of its three colours, of its own once more, and white."""
_SIGNED_SHARE = 0.1
_SPARE = 4  # cells: more than interpolation needs, so that a map a little larger than its slide is read whole
_DARK = "the map stays dark, because no patch is positive; --range LOW,HIGH shows it"


@dataclass(frozen=True)
class Predictions:
    """What a classifier said of the patches of a slide.

    Parameters
    ----------
    target
        Name of the class that is explained.
    patches
        Explained patches.
    positive
        Those of them whose probability of the target is over one half.
    highest
        The highest probability of the target; None without patches.
    """

    target: str
    patches: int
    positive: int
    highest: float | None

    @classmethod
    def of(cls, target: str, probabilities: Sequence[float]) -> Predictions:
        """Count the patches by their probabilities of the target."""
        positive = sum(probability > 0.5 for probability in probabilities)
        return cls(target, len(probabilities), positive, max(probabilities, default=None))

    def adding(self, probability: float) -> Predictions:
        """Count one patch more."""
        highest = probability if self.highest is None else max(self.highest, probability)
        return Predictions(self.target, self.patches + 1, self.positive + (probability > 0.5), highest)

    @property
    def all_negative(self) -> bool:
        """Whether patches were explained, and none of them is positive."""
        return self.positive == 0 < self.patches

    def __str__(self) -> str:
        if self.highest is None:
            return "nothing on this slide was explained: no tissue was found"
        counts = f"{self.positive or 'none'} of {self.patches}"
        return f"patches predicted as {self.target}: {counts} · highest probability {self.highest:.3g}"


@dataclass(frozen=True)
class _Box:
    """A box in pixels of the picture, y downwards."""

    x: int
    y: int
    w: int
    h: int


@dataclass(frozen=True)
class _Layout:
    size: Size
    slide: _Box
    overlay: _Box
    bar: _Box


def write_overview(
    path: Path,
    thumbnail: NDArray[np.uint8],
    heatmap: Heatmap,
    *,
    channel: int = 0,
    label: str = "saliency",
    signed: bool | None = None,
    predictions: Predictions | None = None,
    value_range: tuple[float, float] | None = None,
) -> None:
    """Draw the slide beside the same slide with the map over it, as a PNG.

    The lower a value's magnitude, the more of the tissue remains visible. Where the map is 0, nothing was
    computed and nothing is shown. By percentiles, a slide without any positive patch would look as bright as
    one full of tumour; so its map stays dark, unless a range is given.

    Parameters
    ----------
    path
        The PNG to write.
    thumbnail
        The whole slide, (H, W, 3) uint8 RGB; best of `thumbnail_size`, which is how large it is drawn.
    heatmap
        The finished map.
    channel
        Number of the channel that is drawn.
    label
        What the values are, beside the colour bar.
    signed
        True draws signed values in diverging colours around 0, False their magnitudes in magma. None decides
        by `is_signed`.
    predictions
        What the classifier said of the slide, to be written above it.
    value_range
        Values of the first and the last colour; None takes the 1st and 99th percentile of what is shown.
        Signed values are coloured as far on one side of 0 as on the other.

    Raises
    ------
    OutputError
        If the file cannot be written.
    """
    layout = _layout(heatmap.info.slide_size)
    values = map_on_thumbnail(heatmap, thumbnail_size(heatmap.info.slide_size), channel)
    if signed is False:
        values = np.abs(values)
    dark = value_range is None and predictions is not None and predictions.all_negative
    if dark:
        values = np.zeros_like(values)
    scale = colour_scale(values, value_range, signed=signed)
    picture = Image.new("RGB", (layout.size.w, layout.size.h), "white")
    _draw_panels(picture, layout, Image.fromarray(thumbnail), Image.fromarray(scale(values)))
    slide_um = heatmap.info.slide_size.w * heatmap.info.slide_mpp.x
    for panel in (layout.slide, layout.overlay):
        _draw_scale_bar(picture, panel, slide_um / panel.w)
    if values.any():
        _draw_colour_bar(picture, layout, scale, label)
    note = _DARK if dark else _note(heatmap.info, scale, fixed=value_range is not None)
    said = "" if predictions is None else str(predictions)
    _write_texts(picture, heatmap.info.slide_name, heatmap.info.channels[channel], said, note)
    with writing(path):
        path.write_bytes(png(picture))


def thumbnail_size(slide_size: Size) -> Size:
    """Return the pixels in which the overview shows a slide of ``slide_size`` level-0 pixels."""
    panel = _layout(slide_size).slide
    return Size(panel.w, panel.h)


def slide_in_overview(overview: Image.Image, slide_size: Size) -> Image.Image:
    """Cut the slide, without the map, out of its overview, which may have been made smaller."""
    layout = _layout(slide_size)
    scale, box = overview.width / layout.size.w, layout.slide
    corners = (box.x, box.y, box.x + box.w, box.y + box.h)
    return overview.crop(tuple(round(edge * scale) for edge in corners)).convert("RGB")  # type: ignore[arg-type]


def map_on_thumbnail(heatmap: Heatmap, size: Size, channel: int = 0) -> NDArray[np.float32]:
    """Sample the map at the middle of each pixel of a thumbnail of the whole slide, as `map_on_region`."""
    slide = heatmap.info.slide_size
    return map_on_region(heatmap, Region(0, 0, slide.w, slide.h), size, channel)


def map_on_region(heatmap: Heatmap, region: Region, size: Size, channel: int = 0) -> NDArray[np.float32]:
    """Sample the map at the middle of each pixel of a picture of a region, (H, W) float32.

    Bilinear between the cells' middles, from the finest level whose cells are not smaller than a pixel, so
    that no cell falls between two samples; 0 outside the map. Only the cells around the region are read.

    Parameters
    ----------
    heatmap
        The finished map.
    region
        Level-0 pixels that the picture shows.
    size
        Pixels of the picture.
    channel
        Number of the channel.
    """
    px_x, px_y = region.w / size.w, region.h / size.h
    finer = max(px_x / heatmap.info.placement.fx, px_y / heatmap.info.placement.fy)
    level = min(max(0, math.ceil(math.log2(finer))), len(heatmap.levels) - 1)
    placement, cells = heatmap.info.placement.at_level(level), heatmap.level_sizes[level]
    # In samples' indices a cell's middle is a whole number: cell = index * step + start.
    step_y, step_x = px_y / placement.fy, px_x / placement.fx
    start_y = (region.y + px_y / 2 - placement.y0) / placement.fy - 0.5
    start_x = (region.x + px_x / 2 - placement.x0) / placement.fx - 0.5
    rows = _cells_around(start_y, step_y * size.h, cells.h)
    columns = _cells_around(start_x, step_x * size.w, cells.w)
    if rows.start >= rows.stop or columns.start >= columns.stop:
        return np.zeros((size.h, size.w), np.float32)
    cells_there = heatmap.read(level, rows, columns, channel=channel).astype(np.float64)
    # One axis after the other: the same weights as of both at once, several times faster.
    down = _between(start_y - rows.start, step_y, size.h, len(cells_there)) @ cells_there
    across = _between(start_x - columns.start, step_x, size.w, cells_there.shape[1]) @ down.T
    return np.ascontiguousarray(across.T, np.float32)


def _between(start: float, step: float, count: int, there: int) -> sparse.csr_array:
    """Return the matrix (count, there) that samples a row of cells at ``start + k * step``, linearly.

    Beyond the first and the last cell's middle, the row goes down to 0 within a cell.
    """
    at = start + step * np.arange(count)
    first = np.floor(at).astype(np.intp)
    samples, cells = np.repeat(np.arange(count), 2), np.stack([first, first + 1], axis=1).ravel()
    weights = np.stack([1 - (at - first), at - first], axis=1).ravel()
    known = (cells >= 0) & (cells < there)
    return sparse.csr_array((weights[known], (samples[known], cells[known])), (count, there))


def _cells_around(start: float, length: float, there: int) -> slice:
    """Return which cells of ``there`` are needed for samples from ``start`` on, with some to spare."""
    return slice(max(0, math.floor(start) - _SPARE), min(there, math.ceil(start + length) + _SPARE))


def is_signed(window: Window) -> bool:
    """Whether the window's lower end is negative and has at least a tenth of the upper end's magnitude."""
    return window.start < 0 and -window.start >= _SIGNED_SHARE * window.end


def colour_scale(
    values: NDArray[np.float32], value_range: tuple[float, float] | None, *, signed: bool | None
) -> ColourScale:
    """Choose the colours of what is shown; the parameters are those of `write_overview`."""
    window = window_of(values, 0.0, 0.0)
    if value_range is not None:
        window = window.showing(*value_range)
    if is_signed(window) if signed is None else signed:
        return ColourScale.diverging(max(abs(window.start), abs(window.end)))
    return ColourScale.magnitudes(window.start, window.end)


def _layout(size: Size) -> _Layout:
    """Place both panels side by side or one above the other, whichever shows the slide larger.

    A slide is not drawn larger than it is, but for tiny ones.
    """
    inner = LONGEST_PX - 2 * _MARGIN - _BAR, LONGEST_PX - _HEADER - _FOOTER
    beside = min((inner[0] - _GAP) / 2 / size.w, inner[1] / size.h)
    above = min(inner[0] / size.w, (inner[1] - _GAP) / 2 / size.h)
    scale = min(max(beside, above), max(1, _TINY / max(size.w, size.h)))
    w, h = max(1, int(size.w * scale)), max(1, int(size.h * scale))
    dx, dy = (w + _GAP, 0) if beside >= above else (0, h + _GAP)
    overlay = _Box(_MARGIN + dx, _HEADER + dy, w, h)
    bar_h = max(_SHORTEST_BAR, min(int(0.8 * h), _LONGEST_BAR))
    bar = _Box(overlay.x + w + 28, overlay.y + (h - bar_h) // 2, 26, bar_h)
    total = Size(max(_MIN_WIDTH, 2 * _MARGIN + dx + w + _BAR), _HEADER + dy + h + _FOOTER)
    return _Layout(total, _Box(_MARGIN, _HEADER, w, h), overlay, bar)


def _draw_panels(picture: Image.Image, layout: _Layout, thumbnail: Image.Image, colours: Image.Image) -> None:
    """Draw the slide, and the same slide, pale and almost grey, under the colours."""
    w, h = layout.slide.w, layout.slide.h
    slide = thumbnail.resize((w, h), Image.Resampling.BICUBIC)
    faded = pale(slide)
    faded.paste(colours, mask=colours)
    for box, panel in ((layout.slide, slide), (layout.overlay, faded)):
        picture.paste(panel, (box.x, box.y))
        frame = (box.x - 1, box.y - 1, box.x + w, box.y + h)
        ImageDraw.Draw(picture).rectangle(frame, outline=_FRAME)


def pale(tissue: Image.Image) -> Image.Image:
    """Take most of the colour out of tissue (RGB), so that a map's colours stand out over it."""
    each, own, white = _FADED
    rows = [[each + own * (column == row) for column in range(3)] + [white] for row in range(3)]
    return tissue.convert("RGB", tuple(factor for row in rows for factor in row))


def _draw_scale_bar(picture: Image.Image, panel: _Box, um_per_px: float) -> None:
    """Draw a bar of a round length into the lower left corner of a panel."""
    length_um = nice_number(0.28 * panel.w * um_per_px)
    thickness = max(3, round(0.006 * math.sqrt(panel.w * panel.h)))
    x, y = panel.x + round(0.04 * panel.w), panel.y + panel.h - 4 * thickness
    end = x + round(length_um / um_per_px)
    draw = ImageDraw.Draw(picture)
    draw.rectangle((x - 1, y - 1, end, y + thickness), INK, "white")
    text = length_label(length_um)
    draw.text((x, y - 8), text, INK, font(18), anchor="ls", stroke_width=3, stroke_fill="white")


def _draw_colour_bar(picture: Image.Image, layout: _Layout, scale: ColourScale, label: str) -> None:
    """Draw the colours over white, with points at both ends for the values beyond, and ticks beside them."""
    box, draw = layout.bar, ImageDraw.Draw(picture)
    right, bottom, tip = box.x + box.w, box.y + box.h, box.w // 2
    strip = Image.fromarray(scale.table[::-1, np.newaxis]).resize((box.w, box.h))
    glass = Image.new("RGBA", strip.size, "white")
    strip = Image.alpha_composite(glass, strip).convert("RGB")
    top, middle = (box.x + tip, box.y - tip), (box.x + tip, bottom + tip)
    draw.polygon([(box.x, box.y), top, (right, box.y)], strip.getpixel((0, 0)))
    draw.polygon([(box.x, bottom), middle, (right, bottom)], strip.getpixel((0, box.h - 1)))
    picture.paste(strip, (box.x, box.y))
    draw.polygon([(box.x, box.y), top, (right, box.y), (right, bottom), middle, (box.x, bottom)], None, INK)
    x = _draw_ticks(picture, box, scale)
    face = font(18)
    text = upright(lettered(label, face, layout.size.h - _HEADER), face)
    y = min(box.y + (box.h - text.height) // 2, layout.size.h - text.height)
    picture.paste(INK, (x + 14, max(0, y)), text)


def _draw_ticks(picture: Image.Image, box: _Box, scale: ColourScale) -> int:
    """Draw ticks to the right of the colour bar; returns where their labels end."""
    draw, face = ImageDraw.Draw(picture), font(17)
    ticks = Ticks.between(scale.low, scale.high, max(3, box.h // _PX_PER_TICK))
    right = box.x + box.w
    for value, text in zip(ticks.values, ticks.labels, strict=True):
        y = box.y + box.h * (scale.high - value) / (scale.high - scale.low)
        draw.line((right, y, right + 6, y), INK)
        draw.text((right + 10, y), text, INK, face, anchor="lm")
    if ticks.power:
        y = box.y - box.w
        draw.text((box.x, y), "×10", INK, face, anchor="ls")
        power = str(ticks.power).replace("-", "−")
        draw.text((box.x + face.getlength("×10"), y - 7), power, INK, font(12), anchor="ls")
    return right + 10 + round(max(face.getlength(text) for text in ("0", *ticks.labels)))


def _note(info: HeatmapInfo, scale: ColourScale, *, fixed: bool) -> str:
    cell = info.cell_mpp(0)
    span = (
        f"{scale.low:g} to {scale.high:g}, whatever the slide"
        if fixed
        else "percentiles 1 to 99 of this slide"
    )
    both = ", as far on both sides of 0" if scale.low == -scale.high and not fixed else ""
    return f"one cell of the map is {cell.x:.3g} × {cell.y:.3g} µm · colours span {span}{both}"


def _write_texts(picture: Image.Image, title: str, channel: str, predictions: str, note: str) -> None:
    lines = (
        (title, 44, font(28, bold=True), INK),
        (channel, 88, font(19), FAINT_INK),
        (predictions, 122, font(19), INK),
        (note, picture.height - 32, font(15), FAINT_INK),
    )
    for text, y, face, colour in lines:
        shown = lettered(text, face, picture.width - 2 * _MARGIN)
        ImageDraw.Draw(picture).text((_MARGIN, y), shown, colour, face, anchor="lm")


def png(picture: Image.Image) -> bytes:
    """Compress a picture, smaller if need be, until the file is small enough."""
    while True:
        content = _compressed(picture)
        if len(content) <= MAX_BYTES:
            return content
        smaller = min(0.9, 0.95 * math.sqrt(MAX_BYTES / len(content)))
        picture = picture.resize((int(picture.width * smaller), int(picture.height * smaller)))


def _compressed(picture: Image.Image) -> bytes:
    """Write a picture as PNG; on tissue as small as Pillow's, which tries all filters for each row."""
    kind, pixels = imagecodecs.PNG, np.asarray(picture)
    return bytes(
        imagecodecs.png_encode(pixels, level=1, strategy=kind.STRATEGY.RLE, filter=kind.FILTER.PAETH)
    )
