"""Drift: how far a smoothing method has moved a map, measured against the plain map of the same patches.

The backward hook averages the gradient to one side at every strided convolution. In a linear network this
moves the map by (stride − 1) / 2 input cells of each of them, more than ten slide pixels in all. In a real
one the gates between them (ReLU and its like, which stay where they are) hold most of it back, the more the
better the network is trained and the more the attribution depends on the activation: at 1/8 resolution,
between a tenth of a cell and one and a half. No formula knows that, but the plain map of the same patches
lies in the right place; so the shift between the two is measured, and the heatmap placed accordingly.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

DRIFT_PATCHES = 32  # two halves of so many agree to a twentieth of a cell on a trained network

_Maps = NDArray[np.float32]
_FINE, _COARSE = 1.0, 4.0  # cells; the band in which maps are compared: nuclei, not patches
_ALIKE = 0.1  # correlation below which two maps have nothing in common to measure a shift by
_ENLARGED = 20  # steps a cell


def measure_drift(plain: _Maps, smooth: _Maps, most: tuple[float, float]) -> tuple[float, float]:
    """Measure by how many cells smoothed maps lie to the lower right of plain ones.

    Parameters
    ----------
    plain, smooth
        Maps (N, h, w) of the same patches, signed.
    most
        (y, x), cells: the drift of a linear network, which is never exceeded.

    Returns
    -------
    tuple of float
        (y, x) drift in cells, 0 to ``most``: the peak of the cross-correlation of the maps'
        magnitudes, summed over patches. At most one cell where the maps are too unlike to tell.
    """
    spectrum = _spectrum(smooth) * _spectrum(plain).conj()
    correlation = np.fft.ifft2(spectrum.sum(0)).real
    if correlation.max() < _ALIKE * len(plain):
        return min(most[0], 1.0), min(most[1], 1.0)
    return _peak(correlation, most)


def _spectrum(maps: _Maps) -> NDArray[np.complex128]:
    """Fourier transforms of the maps' magnitudes, band-passed, faded out at the border, of unit energy."""
    magnitude = np.abs(maps).astype(np.float64)
    fine, coarse = (ndimage.gaussian_filter(magnitude, (0, s, s), mode="nearest") for s in (_FINE, _COARSE))
    window = np.outer(np.hanning(maps.shape[1] + 2)[1:-1], np.hanning(maps.shape[2] + 2)[1:-1])
    band = (fine - coarse) * window
    energy = np.sqrt((band**2).sum((1, 2), keepdims=True))
    return np.fft.fft2(band / np.maximum(energy, np.finfo(float).tiny), s=[2 * n for n in maps.shape[1:]])


def _peak(correlation: NDArray[np.float64], most: tuple[float, float]) -> tuple[float, float]:
    """Place of the largest correlation between no drift and ``most``, to a twentieth of a cell."""
    ys, xs = (np.arange(0, m + 0.5 / _ENLARGED, 1 / _ENLARGED) for m in most)
    reach = 4
    near = np.roll(correlation, (reach, reach), (0, 1))[
        : 2 * reach + int(most[0]) + 2, : 2 * reach + int(most[1]) + 2
    ]
    fine = ndimage.map_coordinates(near, np.meshgrid(ys + reach, xs + reach, indexing="ij"), order=3)
    y, x = np.unravel_index(int(fine.argmax()), fine.shape)
    return float(ys[y]), float(xs[x])
