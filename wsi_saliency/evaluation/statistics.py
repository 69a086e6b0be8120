"""Means over patches, with the interval that says how far to trust them.

Intervals are percentile bootstraps (Efron 1979): patches are drawn again, as many as there are and with
replacement, and the middle 95 % of the means of 2000 such draws is the interval. Values are sorted before, so
that the order of the patches changes nothing, and each draw comes with its mirror image, so that a comparison
the other way round gives the mirrored interval.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Literal, NamedTuple, get_args

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

Verdict = Literal["better", "undecided", "worse"]

VERDICTS: tuple[Verdict, ...] = get_args(Verdict)

RESAMPLES = 2000
CONFIDENCE = 0.95
FEWEST = 6
"""With fewer patches, all differences have one sign by chance more often than once in twenty: no verdict."""


@dataclass(frozen=True)
class Summary:
    """Mean and sample standard deviation of ``n`` values, and the mean's interval, ``low`` to ``high``."""

    n: int
    mean: float
    std: float
    low: float
    high: float


class Band(NamedTuple):
    """Mean curve and the interval of the mean at each step, (steps,) each."""

    mean: Floats
    low: Floats
    high: Floats


def summary(values: Floats, seed: int = 0) -> Summary:
    """Sum up one figure per patch, (N,), in any order; NaNs are left out, and without values all is NaN."""
    known = np.sort(values[~np.isnan(values)])
    if not known.size:
        return Summary(0, np.nan, np.nan, np.nan, np.nan)
    low, high = np.quantile(_resampled_means(known, seed), _tails())
    std = float(known.std(ddof=1)) if known.size > 1 else 0.0
    return Summary(known.size, float(known.mean()), std, float(low), float(high))


def paired(a: Floats, b: Floats, seed: int = 0) -> Summary:
    """Sum up a − b, (N,) each, of the same patches in the same order."""
    if a.shape != b.shape:
        raise ValueError(f"values of {a.shape} and {b.shape} patches are not of the same patches")
    return summary(a - b, seed)


def band(curves: Floats, seed: int = 0) -> Band:
    """Sum up curves (N, steps) at each step by itself."""
    ordered = np.sort(curves, axis=0)
    low, high = np.quantile(_resampled_means(ordered, seed), _tails(), axis=0)
    return Band(ordered.mean(axis=0), low, high)


def mean_of_known(values: Floats) -> Floats:
    """Average each row of values (N, K) without its NaNs: (N,), nan for rows that have nothing else."""
    known = ~np.isnan(values)
    n = known.sum(1)
    means: Floats = np.where(n, np.where(known, values, 0).sum(1) / np.maximum(n, 1), np.nan)
    return means


def verdict(difference: Summary, *, higher_is_better: bool) -> Verdict:
    """Say whether the interval of a difference excludes 0, and on which side; undecided for few patches."""
    if difference.n < FEWEST or not (difference.low > 0 or difference.high < 0):
        return "undecided"
    return "better" if (difference.low > 0) == higher_is_better else "worse"


def _tails() -> tuple[float, float]:
    return (1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2


def _resampled_means(ordered: Floats, seed: int) -> Floats:
    """Means of sorted values (N, …) in each resampling: (RESAMPLES, …)."""
    means: Floats = _counts(len(ordered), seed) @ ordered / len(ordered)
    return means


@lru_cache(maxsize=4)
def _counts(n: int, seed: int) -> Floats:
    """How often each of ``n`` sorted values is drawn, (RESAMPLES, n), read-only; 8 n RESAMPLES bytes."""
    rng = np.random.default_rng(seed)
    drawn = rng.multinomial(n, np.full(n, 1 / n), size=RESAMPLES // 2)
    counts = np.concatenate([drawn, drawn[:, ::-1]]).astype(np.float64)
    counts.setflags(write=False)
    return counts
