"""How alike two maps are: correlations that say nothing of maps that are constant."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.stats import rankdata

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

ROUNDING = 1e-5
"""Spread of a map, as a share of its largest magnitude, that is only the rounding of float32."""


def pearson(a: NDArray[np.floating[Any]], b: NDArray[np.floating[Any]]) -> float:
    """Return Pearson's correlation of two maps' cells, of any one shape, in float64.

    It is nan where one of them is constant up to the rounding of float32.
    """
    x, y = (np.asarray(values, np.float64).ravel() for values in (a, b))
    if is_constant(x[None]) or is_constant(y[None]):
        return math.nan
    x, y = x - x.mean(), y - y.mean()
    return float((x @ y) / math.sqrt((x @ x) * (y @ y)))


def spearman(a: NDArray[Any], b: NDArray[Any]) -> Floats:
    """Correlate the ranks of two maps' cells, patch by patch; equal cells share their mean rank.

    Parameters
    ----------
    a, b
        (N, h, w), a map per patch; only the order of a map's cells matters.

    Returns
    -------
    (N,) float64 in [−1, 1]; 0 where a map is constant up to the rounding of float32, for it orders nothing.
    """
    rows = [np.asarray(maps, np.float64).reshape(len(maps), -1) for maps in (a, b)]
    ranks = [rankdata(row, axis=1) for row in rows]
    x, y = (rank - rank.mean(1, keepdims=True) for rank in ranks)
    flat = is_constant(rows[0]) | is_constant(rows[1])
    size = np.sqrt((x * x).sum(1) * (y * y).sum(1))
    return np.asarray(np.where(flat, 0.0, (x * y).sum(1) / np.where(flat, 1.0, size)))


def is_constant(rows: Floats) -> NDArray[np.bool_]:
    """Tell which rows (N, n) have one value, up to the rounding of float32."""
    return np.asarray(np.ptp(rows, axis=1) <= ROUNDING * np.abs(rows).max(axis=1))
