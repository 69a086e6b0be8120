"""Annotations: what people have drawn on a slide, as polygons of level-0 pixels, and as masks."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from wsi_saliency.errors import SettingsError
from wsi_saliency.geometry import Placement

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence
    from pathlib import Path

    from wsi_saliency.geometry import Size

log = logging.getLogger(__name__)

_BEYOND = 0.01  # share of the slide's longer side that outlines may reach beyond it: hands are not steady
_BAND_CELLS = 1 << 22  # cells that are filled at once, which bounds the memory beside the mask

_Floats = NDArray[np.float64]
_Mask = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Polygon:
    """One outlined area.

    Parameters
    ----------
    rings
        (n, 2) float64 x, y in level-0 pixels each, the first the outline, all others holes; the last vertex
        is joined to the first and does not repeat it.
    name
        Its class; None if it has none.
    """

    rings: tuple[_Floats, ...]
    name: str | None = None


@dataclass(frozen=True, eq=False)
class Annotations:
    """The areas of one file.

    Parameters
    ----------
    path
        The file they come from.
    polygons
        What is annotated: their union, less ``cut_outs``.
    cut_outs
        What is not, wherever a polygon covers it.
    """

    path: Path
    polygons: tuple[Polygon, ...]
    cut_outs: tuple[Polygon, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """The classes in the file, sorted, those of cut-outs included."""
        return tuple(sorted({p.name for p in (*self.polygons, *self.cut_outs) if p.name is not None}))

    def only(self, classes: Collection[str]) -> Annotations:
        """Keep the areas of some classes, whatever the case of their letters; all if ``classes`` is empty.

        Cut-outs stay cut out, unless their own class is asked for: then they count as areas.

        Raises
        ------
        SettingsError
            If the file has no area of one of the classes.
        """
        if not classes:
            return self
        known, wanted = {folded(name) for name in self.names}, {folded(name) for name in classes}
        if unknown := [name for name in classes if folded(name) not in known]:
            there = ", ".join(map(repr, self.names)) or "no names at all: leave --annotation-class out"
            raise SettingsError(
                f"{self.path}: no area is of --annotation-class {unknown[0]!r}; it has {there}"
            )
        chosen = [folded(p.name or "") in wanted for p in self.cut_outs]
        return replace(
            self,
            polygons=tuple(p for p in self.polygons if folded(p.name or "") in wanted)
            + tuple(p for p, yes in zip(self.cut_outs, chosen, strict=True) if yes),
            cut_outs=tuple(p for p, yes in zip(self.cut_outs, chosen, strict=True) if not yes),
        )

    def scaled(self, factor: float) -> Annotations:
        """Multiply all coordinates: ``factor`` is level-0 pixels of the slide per pixel of the annotations.

        Raises
        ------
        SettingsError
            If the factor is not a positive number.
        """
        if not (math.isfinite(factor) and factor > 0):
            raise SettingsError(f"--annotation-scale {factor:g}: has to be a positive number")

        def scale(polygons: tuple[Polygon, ...]) -> tuple[Polygon, ...]:
            return tuple(replace(p, rings=tuple(ring * factor for ring in p.rings)) for p in polygons)

        return replace(self, polygons=scale(self.polygons), cut_outs=scale(self.cut_outs))

    def check_on(self, size: Size) -> None:
        """Check that the annotations can belong to a slide of ``size`` level-0 pixels.

        Outlines may reach beyond the slide by 1 % of its longer side. Annotations that are too small for the
        slide cannot be told from a small area.

        Raises
        ------
        SettingsError
            If they reach further.
        """
        vertices = np.concatenate([p.rings[0] for p in (*self.polygons, *self.cut_outs)])
        (left, top), (right, bottom) = vertices.min(axis=0), vertices.max(axis=0)
        margin = _BEYOND * max(size.w, size.h)
        if min(left, top) < -margin or right > size.w + margin or bottom > size.h + margin:
            raise SettingsError(
                f"{self.path}: its areas span x {left:.0f} to {right:.0f} and y {top:.0f} to {bottom:.0f}, "
                f"the slide has {size.w} × {size.h} px; take the annotations of this slide, or give "
                "--annotation-scale if they were drawn at another resolution"
            )

    def mask(self, width: int, height: int, x0: float, y0: float, fx: float, fy: float) -> _Mask:
        """Find the cells of a lattice whose centres lie in an annotation.

        A polygon is filled by the even-odd rule: what an outline that crosses itself encloses twice is
        outside. Its holes follow the same rule, together. A centre exactly on an edge belongs to the area to
        the right of the edge, or below it, so areas that share an edge never share a cell. Beside the mask,
        memory is bounded by a band of `_BAND_CELLS` cells.

        Parameters
        ----------
        width, height
            Cells of the lattice.
        x0, y0, fx, fy
            Cell (i, j) covers level-0 ``[x0 + i*fx, x0 + (i+1)*fx)``, y likewise, as in `Placement`.

        Returns
        -------
        (height, width) bool.
        """
        xs, ys = Placement(x0, y0, fx, fy).centre(np.arange(width), np.arange(height))
        mask = np.zeros((height, width), np.bool_)
        for polygon in self.polygons:
            _fill(mask, polygon, xs, ys, value=True)
        for polygon in self.cut_outs:
            _fill(mask, polygon, xs, ys, value=False)
        return mask


def folded(name: str) -> str:
    """Return a name as it is compared: without spaces around it, in any case."""
    return name.strip().casefold()


def _fill(mask: _Mask, polygon: Polygon, xs: _Floats, ys: _Floats, *, value: bool) -> None:
    """Set the cells whose centres ``xs`` × ``ys`` lie in the polygon, within its bounding box."""
    outline = polygon.rings[0]
    left, right = np.searchsorted(xs, [outline[:, 0].min(), outline[:, 0].max()]).tolist()
    top, bottom = np.searchsorted(ys, [outline[:, 1].min(), outline[:, 1].max()]).tolist()
    if left == right:
        return
    outer, holes = _edges(polygon.rings[:1]), _edges(polygon.rings[1:])
    step = max(1, _BAND_CELLS // (right - left))
    for first in range(top, bottom, step):
        band = slice(first, min(first + step, bottom))
        inside = _inside(outer, xs[left:right], ys[band])
        if len(holes):
            inside &= ~_inside(holes, xs[left:right], ys[band])
        mask[band, left:right][inside] = value


def _edges(rings: Sequence[_Floats]) -> _Floats:
    """Edges of closed rings, (m, 4) x, y of the upper end and of the lower; level ones are left out.

    Going down whichever way the ring goes, two areas that share an edge find the same crossings on it.
    """
    if not rings:
        return np.zeros((0, 4))
    start, end = np.concatenate(rings), np.concatenate([np.roll(ring, -1, axis=0) for ring in rings])
    down = (start[:, 1] < end[:, 1])[:, None]
    edges = np.hstack([np.where(down, start, end), np.where(down, end, start)])
    return edges[edges[:, 1] < edges[:, 3]]


def _inside(edges: _Floats, xs: _Floats, ys: _Floats) -> _Mask:
    """Which of the points ``xs`` × ``ys`` have an odd number of edges on their left, (len(ys), len(xs)).

    An edge crosses the rows from its upper end on to before its lower end. Where it crosses one, everything
    from the first point at or beyond the crossing changes sides. The product comes before the quotient, so
    that crossings of whole or binary coordinates that fall on a point are exact.
    """
    first = np.searchsorted(ys, edges[:, 1])
    rows = np.searchsorted(ys, edges[:, 3]) - first
    edge = np.repeat(np.arange(len(edges)), rows)
    row = np.arange(len(edge)) + np.repeat(first - np.cumsum(rows) + rows, rows)
    x, y, lower_x, lower_y = edges[edge].T
    column = np.searchsorted(xs, x + (ys[row] - y) * (lower_x - x) / (lower_y - y))
    crossed = np.zeros((len(ys), len(xs) + 1), np.uint8)  # overflow at 256 keeps a count odd or even
    np.add.at(crossed.reshape(-1), row * (len(xs) + 1) + column, np.uint8(1))
    np.add.accumulate(crossed, axis=1, out=crossed)
    return np.asarray(crossed[:, :-1] & 1, np.bool_)
