"""A figure for a paper: a region of a slide, the map over it, a scale bar and a colour bar."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import count
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from wsi_saliency.errors import SettingsError
from wsi_saliency.files import replacing
from wsi_saliency.geometry import Size
from wsi_saliency.heatmap.overview import map_on_region, pale
from wsi_saliency.heatmap.ticks import Ticks, length_label, nice_number
from wsi_saliency.report.slide_pictures import scale_of

if TYPE_CHECKING:
    from pathlib import Path

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

    from wsi_saliency.geometry import Region
    from wsi_saliency.heatmap.colours import ColourScale
    from wsi_saliency.heatmap.result import MapRecord, Result
    from wsi_saliency.slides.slide import Slide

FORMATS = (".pdf", ".png", ".svg")
WIDTH_MM = 85.0
"""Width of a column of most journals."""

_MM = 1 / 25.4  # inches
_FONT = 7  # points, as journals want it at the printed size
_GAP, _BAR, _BELOW = 2.0, 2.2, 11.0  # mm: between panels, the colour bar, and the room below the panels
_RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
_PER_CHARACTER, _PER_TICK = 85 / 60, 12.0  # mm of the colour bar
_SHORTEST = 8  # characters of a label that still tell something
_WIDTHS, _MOST_PIXELS = (10.0, 5000.0), 20_000  # mm of a figure; and of a side of a panel
_HAIR = 1e-6  # mm: a width is cut to whole pixels, and must not lose one to rounding


@dataclass(frozen=True)
class View:
    """What a figure shows.

    Parameters
    ----------
    found, channel
        The map, and the number of its target.
    region
        Level-0 pixels of the slide.
    width_mm
        Width of the printed figure.
    dpi
        Pixels per inch of slide and map; and of the whole figure where it is a PNG.
    beside
        Show the slide alone beside it.
    """

    found: MapRecord
    channel: int
    region: Region
    width_mm: float = WIDTH_MM
    dpi: int = 300
    beside: bool = False

    @property
    def panel_mm(self) -> tuple[float, float]:
        """Width and height of one panel."""
        width = (self.width_mm - _GAP) / 2 if self.beside else self.width_mm
        return width, width * self.region.h / self.region.w

    @property
    def pixels(self) -> Size:
        """Pixels in which a panel is read: as many as are printed, not more than there are."""
        w = max(1, min(round(self.panel_mm[0] * _MM * self.dpi), round(self.region.w)))
        return Size(w, max(1, round(w * self.region.h / self.region.w)))


def width_at(scale: float, region_um: float, dpi: int, *, beside: bool) -> float:
    """Return how wide a figure is, mm, in which a pixel shows ``scale`` µm of a region.

    Raises
    ------
    SettingsError
        If the figure would be too small for its labels, or too large to be made.
    """
    pixels = max(1, round(region_um / scale))
    panel = pixels / dpi / _MM
    width = 2 * panel + _GAP if beside else panel
    if not _WIDTHS[0] <= width <= _WIDTHS[1] or pixels > _MOST_PIXELS:
        raise SettingsError(
            f"scale (--scale) is {scale:g} µm per pixel; the region's {region_um:.4g} µm would be {pixels} "
            f"pixels, {width:.6g} mm at {dpi} dpi. A figure has {_WIDTHS[0]:g} to {_WIDTHS[1]:g} mm and at "
            f"most {_MOST_PIXELS} pixels: choose another --scale, --dpi or --region"
        )
    return width


def write_figure(path: Path, result: Result, slide: Slide, view: View) -> None:
    """Draw a view and write it as PDF, PNG or SVG, by the file's suffix.

    Raises
    ------
    OutputError
        If the file cannot be written, or the map is not there.
    SlideError
        If the slide cannot be read.
    """
    tissue = slide.read(view.region, view.pixels)
    values = map_on_region(result.heatmap(view.found.spec), view.region, view.pixels, view.channel)
    if not view.found.signed:
        values = np.abs(values)
    um = slide.mpp.x * view.region.w
    figure = draw(tissue, values, scale_of(view.found, view.channel), view, um)
    nobody_and_never = {".pdf": {"CreationDate": None}, ".svg": {"Date": None}}.get(path.suffix.lower(), {})
    with replacing(path) as growing:
        figure.savefig(growing, dpi=view.dpi, format=path.suffix[1:].lower(), metadata=nobody_and_never)


def draw(
    tissue: NDArray[np.uint8],
    values: NDArray[np.float32],
    scale: ColourScale,
    view: View,
    region_um: float,
) -> Figure:
    """Draw a region and the map over it.

    Parameters
    ----------
    tissue
        (H, W, 3) RGB.
    values
        (H, W): the map on the same pixels, 0 where nothing was computed.
    scale
        Its colours.
    view
        Measures of the figure.
    region_um
        Width of the region, µm.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    width, height = view.panel_mm
    total = height + _BELOW
    with rc_context({"font.size": _FONT, "svg.fonttype": "none", "pdf.fonttype": 42}):
        figure = Figure(figsize=((view.width_mm + _HAIR) * _MM, total * _MM), facecolor="white")
        behind = np.asarray(pale(Image.fromarray(tissue)))
        pictures = [tissue, behind] if view.beside else [behind]
        for i, picture in enumerate(pictures):
            left = i * (width + _GAP) / view.width_mm
            axes = figure.add_axes((left, _BELOW / total, width / view.width_mm, height / total))
            axes.imshow(picture, interpolation="none", aspect="auto")
            axes.set_axis_off()
            _draw_scale_bar(axes, tissue.shape[1], region_um, height)
        axes.imshow(scale(values), interpolation="none", aspect="auto")
        bar = figure.add_axes((0.02, (_BELOW - 1.5 - _BAR) / total, 0.96, _BAR / total))
        _draw_colour_bar(bar, scale, view.found.channels[view.channel], view.width_mm)
    return figure


def _draw_scale_bar(axes: Axes, pixels: int, region_um: float, height_mm: float) -> None:
    """Draw a bar of a round length into the lower left corner."""
    from matplotlib.patheffects import withStroke

    length = nice_number(0.3 * region_um)
    x, y, end = 0.04, 0.05, 0.04 + length / region_um
    around = [withStroke(linewidth=2.5, foreground="white")]
    axes.plot(
        [x, end], [y, y], color="black", lw=1.5, transform=axes.transAxes, solid_capstyle="butt",
        path_effects=around,
    )  # fmt: skip
    above = max(0.02, 0.8 / height_mm)  # of the panel: a text does not touch its bar
    axes.text(x, y + above, length_label(length), transform=axes.transAxes, path_effects=around)
    axes.set_xlim(-0.5, pixels - 0.5)


def _draw_colour_bar(axes: Axes, scale: ColourScale, label: str, width_mm: float) -> None:
    """Draw the colours over white, with round numbers below them and what they are, as much as fits."""
    rgba = scale.table[np.newaxis].astype(float) / 255
    opaque = rgba[..., :3] * rgba[..., 3:] + 1 - rgba[..., 3:]
    axes.imshow(opaque, aspect="auto", extent=(scale.low, scale.high, 0, 1))
    ticks = _ticks(scale, width_mm)
    power = f" (× 10{str(ticks.power).translate(_RAISED)})" if ticks.power else ""
    axes.set_yticks([])
    axes.set_xticks(ticks.values, ticks.labels)
    axes.tick_params(length=2, width=0.5, pad=1)
    for side in axes.spines.values():
        side.set_linewidth(0.5)
    longest = int(width_mm / _PER_CHARACTER) - len(power)
    named = label if len(label) <= longest else f"{label[: longest - 1]}…" if longest >= _SHORTEST else ""
    axes.set_xlabel(f"{named}{power}".strip().replace("$", r"\$"), labelpad=1)


def _ticks(scale: ColourScale, width_mm: float) -> Ticks:
    """Choose round numbers for which there is room, but two at least: one alone says nothing of the rest."""
    fitting = max(2, min(5, int(width_mm / _PER_TICK)))
    choices = (Ticks.between(scale.low, scale.high, most) for most in count(fitting))
    return next(ticks for ticks in choices if len(ticks.values) > 1)
