"""What spoils tissue for a classifier: pen, folds and blur; rough, so that whoever reads a map can filter.

Each measure is a simple published one, of a picture of a few µm per pixel or of a single patch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy import ndimage

from wsi_saliency.slides.tissue import TissueMask, ink_in, tissue_in

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from wsi_saliency.slides.slide import Slide

PEN_SHARE = 0.05
"""Share of a patch under pen from which on it is counted."""

FOLD_SHARE = 0.1
"""Share of a patch that is folded from which on it is counted."""

SHARPNESS = 20.0
"""Variance of the Laplacian below which a patch is counted as blurred. Sharp tissue of CMU-1 has over 300 at
0.5 µm per pixel; blurred by 1 µm (standard deviation) it has 22, by 1.5 µm 6. Soft scanners have less."""

_FOLD_DEVIATIONS = 3.5
_FOLD_MIN = 0.1  # above the median of the slide's tissue, in shares of the range
_FOLD_PIXELS = 12  # of a fold, at least; smaller are clumps of nuclei


@dataclass(frozen=True, eq=False)
class Artefacts:
    """Where a slide has pen and folds."""

    pen: TissueMask
    fold: TissueMask


def artefacts_of(slide: Slide, rgb: NDArray[np.uint8]) -> Artefacts:
    """Find pen and folds in a picture of the whole slide, (h, w, 3) uint8, best of `tissue.mask_size`."""
    pixel_w, pixel_h = slide.size.w / rgb.shape[1], slide.size.h / rgb.shape[0]
    pen = ink_in(rgb)
    return Artefacts(TissueMask(pen, pixel_w, pixel_h), TissueMask(folds_in(rgb) & ~pen, pixel_w, pixel_h))


def folds_in(rgb: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Find folds: tissue that lies double is more saturated and darker than the rest of the slide's tissue.

    .. math:: d = S - V

    with saturation and value of HSV in 0 to 1 (Bautista and Yagi, "Detection of tissue folds in whole slide
    images", EMBC 2009). A fold is where d lies over the median of the tissue by 3.5 robust standard
    deviations (1.4826 times the median absolute deviation), and by 0.1 at least.

    Parameters
    ----------
    rgb
        (h, w, 3) uint8, of a few µm per pixel.

    Returns
    -------
    (h, w) bool.
    """
    tissue = tissue_in(rgb)
    if not tissue.any():
        return tissue
    light = ndimage.uniform_filter(rgb.astype(np.float32), (3, 3, 1)) / 255
    value, low = light.max(axis=2), light.min(axis=2)
    difference = (value - low) / np.maximum(value, 1 / 255) - value
    middle = np.median(difference[tissue])
    spread = 1.4826 * np.median(np.abs(difference[tissue] - middle))
    double = tissue & (difference > middle + max(_FOLD_MIN, _FOLD_DEVIATIONS * spread))
    labels, _ = ndimage.label(ndimage.binary_opening(double))
    large = np.bincount(labels.ravel()) >= _FOLD_PIXELS
    large[0] = False
    return np.asarray(large[labels])


def sharpness(patches: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Variance of the Laplacian of each patch's grey levels: low where a picture is blurred.

    (Pech-Pacheco and others, "Diatom autofocusing in brightfield microscopy: a comparative study", ICPR
    2000.)

    Parameters
    ----------
    patches
        (N, P, P, 3) uint8.

    Returns
    -------
    (N,), grey levels squared; what has no structure has 0 too.
    """
    return np.array([_laplacian(patch).var(dtype=np.float64) for patch in patches])


def _laplacian(patch: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Sum of the four neighbours less four times the middle, of inner pixels."""
    grey = patch.mean(axis=2, dtype=np.float32)
    across = grey[1:-1, :-2] + grey[1:-1, 2:]
    return np.asarray(across + grey[:-2, 1:-1] + grey[2:, 1:-1] - 4 * grey[1:-1, 1:-1])
