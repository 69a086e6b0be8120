"""Localisation: how well a map finds the annotated regions in the tissue, beside the plain probabilities."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from wsi_saliency.geometry import Placement

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import ArrayLike, NDArray

    _Floats = NDArray[np.float32] | NDArray[np.float64]
    _Mask = NDArray[np.bool_]

_CHUNK = 1 << 20  # positives that are looked up at once
_BAND_CELLS = 1 << 22  # cells of the probability map that are summed at once


class Localisation(NamedTuple):
    """Scores of one map, with the fields of `measured.Localisation` that it takes to know them.

    ``annotated`` is the annotated share of the tissue: average precision and hits by chance.
    """

    auroc: float
    average_precision: float
    hit: bool
    annotated: float


def localise(values: NDArray[np.float32], positive: _Mask, tissue: _Mask) -> Localisation:
    """Score a map against annotations, over the pixels of the tissue only.

    The pointing game (Zhang et al. 2016) is played once on the whole slide: ``hit`` is whether the largest
    value in the tissue lies in an annotation; of several, the first in raster order counts. Whether the sign
    or the magnitude of a map is judged is up to the caller.

    Parameters
    ----------
    values, positive, tissue
        (H, W) float32, bool and bool, on one lattice.

    Returns
    -------
    `Localisation`. Where none or all of the tissue is annotated there is nothing to tell apart: the area and
    the precision are NaN, and ``hit`` is False or True. Without tissue ``annotated`` is 0 and ``hit`` False.

    Raises
    ------
    ValueError
        If the shapes differ, or a value in the tissue is NaN.
    """
    if not values.shape == positive.shape == tissue.shape:
        raise ValueError(f"shapes {values.shape}, {positive.shape} and {tissue.shape} are not of one lattice")
    inside, annotated = values[tissue], positive[tissue]
    if not inside.size:
        return Localisation(math.nan, math.nan, False, 0.0)
    auroc, average_precision = pixel_scores(inside, annotated)
    return Localisation(auroc, average_precision, bool(annotated[inside.argmax()]), float(annotated.mean()))


def pixel_scores(values: _Floats, positive: _Mask) -> tuple[float, float]:
    r"""Area under the ROC curve and average precision, exact where values are equal.

    .. math:: \mathrm{AUROC} = P(v^+ > v^-) + ½ P(v^+ = v^-), \quad
              \mathrm{AP} = \frac{1}{n^+} \sum_{v^+} \frac{T(v^+)}{T(v^+) + F(v^+)}

    with T and F the numbers of positives and negatives at or above a value. Every positive raises the recall
    by 1 / n⁺ at its own value, so the latter is Σ (recall − recall before) · precision over all thresholds.
    Memory: one sorted copy of the values in their own dtype.

    Parameters
    ----------
    values, positive
        (n,) float32 or float64, and (n,) bool.

    Returns
    -------
    Both NaN if either class is empty.

    Raises
    ------
    ValueError
        If a value is NaN.
    """
    within, outside = values[positive], values[~positive]
    within.sort()
    outside.sort()
    if any(part.size and np.isnan(part[-1]) for part in (within, outside)):  # NaN is sorted to the end
        raise ValueError("a map that is NaN somewhere has no order")
    if not (within.size and outside.size):
        return math.nan, math.nan
    won_twice, precision = 0, 0.0
    for start in range(0, within.size, _CHUNK):
        chunk = within[start : start + _CHUNK]
        below = np.searchsorted(outside, chunk, "left")
        won_twice += int(below.sum() + np.searchsorted(outside, chunk, "right").sum())
        true_positives = within.size - np.searchsorted(within, chunk, "left")
        precision += float((true_positives / (true_positives + (outside.size - below))).sum())
    return won_twice / (2 * within.size * outside.size), precision / within.size


def patch_probability_map(
    boxes: ArrayLike,
    probabilities: ArrayLike,
    width: int,
    height: int,
    x0: float,
    y0: float,
    fx: float,
    fy: float,
) -> NDArray[np.float32]:
    """Lay the classifier's own patch probabilities over a slide: the heatmap without any attribution.

    A cell is the mean probability of all patches that cover its centre, 0 where there is none. Sums are kept
    in fixed point, so that cells under the same patches have exactly equal values: rounding breaks no ties.

    Parameters
    ----------
    boxes
        (n, 4) level-0 x, y, w, h of the patches, covering ``[x, x + w)`` × ``[y, y + h)``.
    probabilities
        (n,) in [0, 1].
    width, height
        Cells of the lattice.
    x0, y0, fx, fy
        Cell (i, j) covers level-0 ``[x0 + i*fx, x0 + (i+1)*fx)``, y likewise, as in `Placement`.

    Returns
    -------
    (height, width) float32.

    Raises
    ------
    ValueError
        If there is not one probability in [0, 1] for each box.
    """
    boxes, probabilities = np.asarray(boxes, np.float64).reshape(-1, 4), np.asarray(probabilities, np.float64)
    if probabilities.shape != boxes.shape[:1] or not ((probabilities >= 0) & (probabilities <= 1)).all():
        raise ValueError(f"{len(boxes)} boxes need a probability in [0, 1] each")
    xs, ys = Placement(x0, y0, fx, fy).centre(np.arange(width), np.arange(height))
    left, top, w, h = boxes.T
    columns = np.searchsorted(xs, left), np.searchsorted(xs, left + w)
    rows = np.searchsorted(ys, top), np.searchsorted(ys, top + h)
    unit = 2.0 ** (62 - len(boxes).bit_length())  # so that even all patches on one cell fit into int64
    fixed = np.rint(probabilities * unit).astype(np.int64)
    result = np.zeros((height, width), np.float32)
    step = max(1, _BAND_CELLS // max(1, width))
    for first in range(0, height, step):
        band = result[first : first + step]
        band_rows = [np.clip(row - first, 0, len(band)) for row in rows]
        total = _sum_of_boxes(fixed, columns, band_rows, band.shape)
        count = _sum_of_boxes(np.ones_like(fixed), columns, band_rows, band.shape)
        np.divide(total / unit, count, out=band, where=count > 0, casting="same_kind")
    return result


def _sum_of_boxes(
    values: NDArray[np.int64],
    columns: Sequence[NDArray[np.intp]],
    rows: Sequence[NDArray[np.intp]],
    shape: tuple[int, int],
) -> NDArray[np.int64]:
    """Sum the values of the boxes over each cell: differences at the four corners, summed up both ways.

    ``columns`` and ``rows`` are the first cell of each box and the first after it; ``shape`` is (h, w).
    """
    h, w = shape
    corners = np.zeros((h + 1, w + 1), np.int64)
    for row, sign_y in zip(rows, (1, -1), strict=True):
        for column, sign_x in zip(columns, (1, -1), strict=True):
            np.add.at(corners.reshape(-1), row * (w + 1) + column, sign_y * sign_x * values)
    return corners.cumsum(axis=0).cumsum(axis=1)[:h, :w]
