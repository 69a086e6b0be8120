"""One picture of all maps of a slide: a grid of small panels, readable when it is printed in one column."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from wsi_saliency.files import writing
from wsi_saliency.geometry import Size
from wsi_saliency.heatmap.lettering import FAINT_INK, INK, font, lettered
from wsi_saliency.heatmap.overview import colour_scale, map_on_thumbnail, pale, png
from wsi_saliency.heatmap.ticks import length_label, nice_number, short_number

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray
    from PIL.ImageFont import FreeTypeFont

    from wsi_saliency.heatmap.colours import ColourScale
    from wsi_saliency.heatmap.ome_zarr import Heatmap
    from wsi_saliency.heatmap.overview import Predictions
    from wsi_saliency.heatmap.result import MapRecord

WIDTH, LONGEST = 1500, 2600
"""Pixels of the sheet: its width, and its height at most. Printed 85 mm wide, they are 147 mm high."""

MOST = 19
"""Maps on a sheet at most; together with the slide they fill five rows of four."""

_PT = WIDTH / 85 * 25.4 / 72  # pixels of a point, printed 85 mm wide
_TITLE, _TEXT = 8 * _PT, 6 * _PT  # what is smaller than 6 points is hard to read on paper
_LINE = round(1.25 * _TEXT)
_MARGIN, _GAP, _COLUMNS = 30, 26, 4
_HEAD, _FOOT = 3 * _LINE + 60, _LINE + 20
_STRIP, _NEAR, _SHORTEST_STRIP = 18, 8, 330
_ALMOST = 0.85  # of the largest panel: for that, a sheet is not made half empty
_FRAME = "#c9c9d0"
_NOTHING = 1e-3  # of the last colour's value: what is less is written as 0


class _Grid(NamedTuple):
    """Where panels stand: their columns, pixels of a cell's width and of a panel, lines of a label."""

    columns: int
    cell_w: int
    panel: Size
    lines: int

    @property
    def cell_h(self) -> int:
        return _around(self.lines) + self.panel.h

    def corner(self, number: int) -> tuple[int, int]:
        """Upper left corner of a cell."""
        row, column = divmod(number, self.columns)
        return _MARGIN + column * (self.cell_w + _GAP), _HEAD + row * (self.cell_h + _GAP)

    def height(self, panels: int) -> int:
        """Pixels of the whole sheet."""
        rows = -(-panels // self.columns)
        return _HEAD + rows * (self.cell_h + _GAP) - _GAP + _FOOT


@dataclass(frozen=True)
class _Labels:
    """What is said of all maps above the sheet, and of each above its panel, a line for each thing."""

    shared: str
    own: list[list[str]]

    @classmethod
    def of(cls, maps: Sequence[MapRecord]) -> _Labels:
        parts = [(found.spec.layer, found.spec.method, found.spec.attribution) for found in maps]
        same = [len(set(part)) == 1 for part in zip(*parts, strict=True)]
        shared = [part for part, one in zip(parts[0], same, strict=True) if one]
        own = [[part for part, one in zip(named, same, strict=True) if not one] for named in parts]
        return cls(" · ".join(shared), own)


def write_contact_sheet(
    path: Path,
    thumbnail: NDArray[np.uint8],
    maps: Sequence[tuple[MapRecord, Heatmap]],
    predictions: Predictions,
    value_range: tuple[float, float] | None = None,
) -> None:
    """Draw the slide and each map over it, for the first target, as a PNG.

    What all maps share stands above the sheet once; above a panel stands in what its map differs. Colours
    are those of `wsi_saliency.heatmap.overview.write_overview`. Of more than `MOST` maps the first are shown.

    Parameters
    ----------
    path
        The PNG to write.
    thumbnail
        The whole slide, (H, W, 3) uint8 RGB.
    maps
        What the record says of each map, and the finished map.
    predictions
        What the classifier said of the slide.
    value_range
        Values of the first and the last colour; None takes percentiles of each map.

    Raises
    ------
    OutputError
        If the file cannot be written.
    """
    shown, info = maps[:MOST], maps[0][1].info
    labels = _Labels.of([found for found, _ in shown])
    dark = value_range is None and predictions.all_negative
    grid = _grid(info.slide_size, 1 + len(shown), len(labels.own[0]))
    picture = Image.new("RGB", (WIDTH, grid.height(1 + len(shown))), "white")
    tissue = Image.fromarray(thumbnail).resize(
        (grid.panel.w, grid.panel.h), Image.Resampling.BICUBIC, reducing_gap=3
    )
    um_per_px = info.slide_size.w * info.slide_mpp.x / grid.panel.w
    _draw_slide(picture, grid, tissue, um_per_px)
    for number, ((found, heatmap), label) in enumerate(zip(shown, labels.own, strict=True), 1):
        panel = pale(tissue)
        scale = None if dark else _lay_over(panel, found, heatmap, value_range)
        place = _draw_panel(picture, grid, number, label, panel)
        if scale:
            _draw_colours(picture, place, max(grid.panel.w, min(grid.cell_w, _SHORTEST_STRIP)), scale)
    head = [info.slide_name, " · ".join(filter(None, (labels.shared, predictions.target))), str(predictions)]
    _write_texts(picture, head, _note(len(maps) - len(shown), dark=dark, fixed=value_range is not None))
    with writing(path):
        path.write_bytes(png(picture))


def _around(lines: int) -> int:
    """Pixels of a cell above and below its panel."""
    return lines * _LINE + _NEAR + _NEAR + _STRIP + _LINE


def _grid(slide: Size, panels: int, lines: int) -> _Grid:
    """Choose the most columns with which the slide is almost as large as it can be."""
    found: list[tuple[float, int, int]] = []
    for columns in range(1, _COLUMNS + 1):
        rows = -(-panels // columns)
        cell_w = (WIDTH - 2 * _MARGIN + _GAP) // columns - _GAP
        high = (LONGEST - _HEAD - _FOOT + _GAP) // rows - _GAP - _around(lines)
        found.append((min(cell_w / slide.w, high / slide.h), columns, cell_w))
    enough = _ALMOST * max(found)[0]
    scale, columns, cell_w = next(choice for choice in reversed(found) if choice[0] >= enough)
    panel = Size(max(1, int(slide.w * scale)), max(1, int(slide.h * scale)))
    return _Grid(columns, cell_w, panel, lines)


def _draw_slide(picture: Image.Image, grid: _Grid, tissue: Image.Image, um_per_px: float) -> None:
    """Draw the slide as it is, and below it a bar of a round length."""
    x, y = _draw_panel(picture, grid, 0, ["slide"], tissue)
    length = nice_number(0.6 * grid.panel.w * um_per_px)
    draw = ImageDraw.Draw(picture)
    draw.rectangle((x, y + 4, x + round(length / um_per_px), y + _STRIP - 4), INK)
    draw.text((x, y + _STRIP + _LINE // 2), length_label(length), INK, font(_TEXT), anchor="lm")


def _lay_over(
    tissue: Image.Image, found: MapRecord, heatmap: Heatmap, value_range: tuple[float, float] | None
) -> ColourScale:
    """Draw a map over pale tissue; returns what its colours mean."""
    values = map_on_thumbnail(heatmap, Size(tissue.width, tissue.height))
    if not found.signed:
        values = np.abs(values)
    scale = colour_scale(values, value_range, signed=found.signed)
    colours = Image.fromarray(scale(values))
    tissue.paste(colours, mask=colours)
    return scale


def _draw_colours(picture: Image.Image, place: tuple[int, int], width: int, scale: ColourScale) -> None:
    """Draw the colours over white, and below them the values of the first and the last."""
    x, y = place
    strip = Image.fromarray(scale.table[np.newaxis]).resize((width, _STRIP))
    picture.paste("white", (x, y, x + width, y + _STRIP))
    picture.paste(strip, (x, y), strip)
    draw, face, middle = ImageDraw.Draw(picture), font(_TEXT), y + _STRIP + _LINE // 2
    draw.rectangle((x, y, x + width - 1, y + _STRIP - 1), None, INK)
    low = 0 if abs(scale.low) < _NOTHING * scale.high else scale.low
    draw.text((x, middle), short_number(low), INK, face, anchor="lm")
    draw.text((x + width, middle), short_number(scale.high), INK, face, anchor="rm")


def _draw_panel(
    picture: Image.Image, grid: _Grid, number: int, label: list[str], panel: Image.Image
) -> tuple[int, int]:
    """Draw a panel under its label; returns where what is below it begins."""
    x, y = grid.corner(number)
    draw, face = ImageDraw.Draw(picture), font(_TEXT)
    top = y + grid.lines * _LINE
    for line, text in enumerate(reversed(label), 1):  # the last line of each stands on its panel
        shown = lettered(text, face, grid.cell_w)
        draw.text((x, top - (line - 0.5) * _LINE), shown, INK, face, anchor="lm")
    top += _NEAR
    picture.paste(panel, (x, top))
    draw.rectangle((x - 1, top - 1, x + panel.width, top + panel.height), None, _FRAME)
    return x, top + panel.height + _NEAR


def _note(left_out: int, *, dark: bool, fixed: bool) -> str:
    if dark:
        return "no patch is positive, so maps stay dark; --range LOW,HIGH shows them"
    said = "all maps have the same range" if fixed else "each map has its own range: percentiles 1 to 99"
    return f"{said} · {left_out} maps are not shown here" if left_out else said


def _write_texts(picture: Image.Image, head: Sequence[str], note: str) -> None:
    """Write the lines above and below the panels."""
    faces: list[FreeTypeFont] = [font(_TITLE, bold=True), font(_TEXT), font(_TEXT)]
    places = (38, 38 + 1.2 * _LINE, 38 + 2.2 * _LINE)
    inks = INK, FAINT_INK, INK
    lines = [*zip(head, places, faces, inks, strict=True)]
    for text, y, face, ink in [*lines, (note, picture.height - _FOOT / 2, font(_TEXT), FAINT_INK)]:
        shown = lettered(text, face, WIDTH - 2 * _MARGIN)
        ImageDraw.Draw(picture).text((_MARGIN, math.floor(y)), shown, ink, face, anchor="lm")
