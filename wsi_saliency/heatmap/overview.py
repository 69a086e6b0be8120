"""One picture for the eye: the slide, the map over it, what the colours mean and how large things are."""

from __future__ import annotations

import io
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib import colormaps, patheffects
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import ListedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font
from matplotlib.patches import Rectangle
from matplotlib.ticker import ScalarFormatter
from scipy import ndimage

from wsi_saliency.geometry import Size
from wsi_saliency.heatmap import writing
from wsi_saliency.heatmap.pyramid import Window, window_of

if TYPE_CHECKING:
    from pathlib import Path

    from matplotlib.axes import Axes
    from matplotlib.image import AxesImage
    from numpy.typing import NDArray

    from wsi_saliency.heatmap.ome_zarr import Heatmap

LONGEST_PX = 2000
"""The picture is at most this long."""

MAX_BYTES = 5_000_000
"""The file is at most this large; pictures of very busy slides are made smaller."""

_DPI = 100
_MARGIN, _GAP, _HEADER, _FOOTER, _BAR = 40, 30, 130, 70, 180
_MIN_WIDTH, _LONGEST_BAR = 900, 900
_INK, _FAINT_INK = "#1c1c22", "#6b6b75"
_SIGNED_SHARE = 0.1


@dataclass(frozen=True)
class _Box:
    """A box in pixels of the picture, y downwards."""

    x: float
    y: float
    w: float
    h: float


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
    computed: NDArray[np.bool_] | None = None,
    *,
    title: str | None = None,
    label: str = "saliency",
    signed: bool | None = None,
) -> None:
    """Draw the slide beside the same slide with the map over it, as a PNG.

    Values from the 1st to the 99th percentile of what is shown have different colours; the lower a value's
    magnitude, the more of the tissue remains visible.

    Parameters
    ----------
    path
        The PNG to write.
    thumbnail
        The whole slide, (H, W, 3) uint8 RGB.
    heatmap
        The finished map.
    computed
        Pixels of the thumbnail that were explained, (H, W); the map is shown only there. None: where it is
        not 0.
    title
        First line; the slide's name if None. The second line is the map's channel.
    label
        What the values are, beside the colour bar.
    signed
        True draws signed values in diverging colours around 0, False their magnitudes in magma. None decides
        by `is_signed`.

    Raises
    ------
    OutputError
        If the file cannot be written.
    """
    size = Size(thumbnail.shape[1], thumbnail.shape[0])
    values = map_on_thumbnail(heatmap, size)
    if signed is False:
        values = np.abs(values)
    window = window_of(values if computed is None else values[computed], 0.0, 0.0)
    shown = np.ma.masked_array(values, values == 0 if computed is None else ~computed)
    colours = _colours(is_signed(window) if signed is None else signed, window)
    png = _png(_draw(thumbnail, shown, colours, heatmap, title or heatmap.info.slide_name, label))
    with writing(path):
        path.write_bytes(png)


def map_on_thumbnail(heatmap: Heatmap, size: Size) -> NDArray[np.float32]:
    """Sample the map at the middle of each pixel of a thumbnail of the whole slide, (H, W) float32.

    Bilinear between the cells' middles, from the finest level whose cells are not smaller than a pixel, so
    that no cell falls between two samples; 0 outside the map.
    """
    info = heatmap.info
    px_x, px_y = info.slide_size.w / size.w, info.slide_size.h / size.h
    finer = max(px_x / info.placement.fx, px_y / info.placement.fy)
    level = min(max(0, math.ceil(math.log2(finer))), len(heatmap.levels) - 1)
    placement = info.placement.at_level(level)
    # In ndimage's indices a cell's middle is a whole number: cell = index * step + start.
    step = (px_y / placement.fy, px_x / placement.fx)
    start = (
        (px_y / 2 - placement.y0) / placement.fy - 0.5,
        (px_x / 2 - placement.x0) / placement.fx - 0.5,
    )
    sampled: NDArray[np.float32] = ndimage.affine_transform(
        heatmap.read(level), step, start, (size.h, size.w), order=1, mode="grid-constant", cval=0.0
    )
    return sampled


def is_signed(window: Window) -> bool:
    """Whether the window's lower end is negative and has at least a tenth of the upper end's magnitude."""
    return window.start < 0 and -window.start >= _SIGNED_SHARE * window.end


def nice_length_um(longest_um: float) -> float:
    """Return the largest of 1, 2, 5, 10, 20, 50 … µm (or 0.5, 0.2 …) that is at most ``longest_um``."""
    power = 10.0 ** math.floor(math.log10(longest_um))
    # The logarithm of a number just below a power of ten is rounded up to it: the half of that is tried too.
    return max(step * power for step in (0.5, 1, 2, 5) if step * power <= longest_um)


def length_label(length_um: float) -> str:
    """Write a length in mm from 1 mm on, in µm below."""
    return f"{length_um / 1000:g} mm" if length_um >= 1000 else f"{length_um:g} µm"


def _colours(signed: bool, window: Window) -> tuple[ListedColormap, Normalize]:
    """Colours whose opacity grows with the value's magnitude, so that the colour bar shows both.

    The ends of the colour maps, almost black and almost white, are left out: both occur in tissue.
    """
    if signed:
        position = np.linspace(-1, 1, 511)
        rgba = colormaps["RdBu_r"](0.5 + 0.44 * position)
        limit = max(abs(window.start), abs(window.end))
        norm = Normalize(-limit, limit)
    else:
        position = np.linspace(0, 1, 256)
        rgba = colormaps["magma"](0.15 + 0.8 * position)
        norm = Normalize(window.start, window.end)
    rgba[:, 3] = 0.8 * np.abs(position) ** 0.6
    return ListedColormap(rgba), norm


def _layout(size: Size) -> _Layout:
    """Place both panels side by side or one above the other, whichever shows the slide larger."""
    inner = LONGEST_PX - 2 * _MARGIN - _BAR, LONGEST_PX - _HEADER - _FOOTER
    beside = min((inner[0] - _GAP) / 2 / size.w, inner[1] / size.h)
    above = min(inner[0] / size.w, (inner[1] - _GAP) / 2 / size.h)
    scale = max(beside, above)
    w, h = size.w * scale, size.h * scale
    dx, dy = (w + _GAP, 0.0) if beside >= above else (0.0, h + _GAP)
    width = max(_MIN_WIDTH, 2 * _MARGIN + dx + w + _BAR)
    overlay = _Box(_MARGIN + dx, _HEADER + dy, w, h)
    bar_h = min(0.8 * h, _LONGEST_BAR)
    bar = _Box(overlay.x + w + 28, overlay.y + (h - bar_h) / 2, 26, bar_h)
    total = Size(round(width), round(_HEADER + dy + h + _FOOTER))
    return _Layout(total, _Box(_MARGIN, _HEADER, w, h), overlay, bar)


def _draw(
    thumbnail: NDArray[np.uint8],
    shown: np.ma.MaskedArray[Any, Any],
    colours: tuple[ListedColormap, Normalize],
    heatmap: Heatmap,
    title: str,
    label: str,
) -> Figure:
    layout = _layout(Size(thumbnail.shape[1], thumbnail.shape[0]))
    figure = Figure((layout.size.w / _DPI, layout.size.h / _DPI), dpi=_DPI, facecolor="white")
    FigureCanvasAgg(figure)
    slide, overlay = _axes(figure, layout, layout.slide), _axes(figure, layout, layout.overlay)
    slide.imshow(thumbnail, aspect="auto")
    overlay.imshow(_greyed(thumbnail), aspect="auto")
    image = overlay.imshow(shown, cmap=colours[0], norm=colours[1], aspect="auto")
    um_per_px = heatmap.info.slide_size.w * heatmap.info.slide_mpp.x / thumbnail.shape[1]
    for axes in (slide, overlay):
        _scale_bar(axes, Size(thumbnail.shape[1], thumbnail.shape[0]), um_per_px)
    _colour_bar(figure, layout, image, label)
    _texts(figure, layout, (title, heatmap.info.channel, _note(heatmap, shown)))
    return figure


def _axes(figure: Figure, layout: _Layout, box: _Box) -> Axes:
    w, h = layout.size.w, layout.size.h
    axes = figure.add_axes((box.x / w, 1 - (box.y + box.h) / h, box.w / w, box.h / h), xticks=[], yticks=[])
    for spine in axes.spines.values():
        spine.set(color="#c9c9d0", linewidth=1)
    return axes


def _greyed(thumbnail: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Take most of the stain's colour and darkness away, so that the map's colours stand out from it."""
    grey = thumbnail.mean(axis=2, keepdims=True)
    faded: NDArray[np.float64] = 0.2 * 255 + 0.68 * grey + 0.12 * thumbnail
    return np.rint(faded).astype(np.uint8)


def _scale_bar(axes: Axes, size: Size, um_per_px: float) -> None:
    length_um = nice_length_um(0.28 * size.w * um_per_px)
    thickness = 0.01 * math.sqrt(size.w * size.h)
    x, y = 0.04 * size.w, size.h - 4 * thickness
    bar = Rectangle(
        (x, y), length_um / um_per_px, thickness, facecolor=_INK, edgecolor="white", linewidth=1.5
    )
    axes.add_patch(bar)
    halo = [patheffects.withStroke(linewidth=4, foreground="white")]
    text = length_label(length_um)
    axes.text(x, y - thickness, text, va="bottom", fontsize=13, color=_INK, path_effects=halo)


def _colour_bar(figure: Figure, layout: _Layout, image: AxesImage, label: str) -> None:
    axes = _axes(figure, layout, layout.bar)
    formatter = ScalarFormatter(useMathText=True)
    formatter.set_powerlimits((-2, 4))
    bar = figure.colorbar(image, cax=axes, extend="both", extendfrac=0.03, format=formatter)
    bar.ax.tick_params(labelsize=12, labelcolor=_INK, color=_FAINT_INK)
    bar.ax.yaxis.get_offset_text().set(fontsize=12, color=_INK)
    bar.ax.yaxis.set_offset_position("left")
    bar.set_label(_drawable(label), fontsize=13, color=_INK, labelpad=10, parse_math=False)


def _note(heatmap: Heatmap, shown: np.ma.MaskedArray[Any, Any]) -> str:
    if not shown.count():
        return "nothing on this slide was explained"
    cell = heatmap.info.cell_mpp(0)
    return f"one cell of the map is {cell.x:.3g} × {cell.y:.3g} µm · colours span percentiles 1 to 99"


def _texts(figure: Figure, layout: _Layout, texts: tuple[str, str, str]) -> None:
    """Write title, channel and note."""
    lines = (
        (texts[0], 44, 20, _INK, "bold"),
        (texts[1], 88, 14, _FAINT_INK, "normal"),
        (texts[2], layout.size.h - 32, 11, _FAINT_INK, "normal"),
    )
    for text, y, points, colour, weight in lines:
        figure.text(
            _MARGIN / layout.size.w,
            1 - y / layout.size.h,
            _shortened(_drawable(text), points, layout.size.w - 2 * _MARGIN),
            fontsize=points,
            color=colour,
            weight=weight,
            va="center",
            parse_math=False,
        )


def _shortened(text: str, points: float, width: float) -> str:
    """Leave out the middle of a text that may be too long for ``width`` pixels (bold, of wide letters)."""
    room = int(width / (0.72 * points * _DPI / 72))
    if len(text) <= room:
        return text
    half = max(1, (room - 1) // 2)
    return f"{text[:half]}…{text[-half:]}"


def _drawable(text: str) -> str:
    """Replace characters that the font cannot draw."""
    font = get_font(findfont(FontProperties()))
    return "".join(c if font.get_char_index(ord(c)) else "□" for c in text)


def _png(figure: Figure) -> bytes:
    """Render, smaller if need be, until the file is small enough."""
    dpi = float(_DPI)
    while True:
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=dpi)
        if buffer.tell() <= MAX_BYTES:
            return buffer.getvalue()
        dpi *= min(0.9, 0.95 * math.sqrt(MAX_BYTES / buffer.tell()))
