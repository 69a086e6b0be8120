"""Where a slide has tissue, from one low-resolution read.

Tissue is what has *colour* in transmitted light. Stains absorb the three channels unequally; glass,
scratches, coverslip edges, dust, shadows, black borders and white filling absorb them equally, however dark.
So the measure is the spread of the optical density over the channels, OD_c = −log10(I_c / glass_c), and not
brightness. The thresholds are absolute: one found in the picture's own histogram (Otsu) would find tissue on
an empty slide, and give up the paler half of a slide without glass.

What remains to be told from tissue are markers. They have colour, but are smooth at the scale of cells, and
have ratios of optical densities that stains do not have.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from wsi_saliency.geometry import Mpp, Size
from wsi_saliency.slides.whole import read_whole

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

    from wsi_saliency.slides.slide import Slide

MASK_MPP = 8.0
"""µm per mask pixel: about one nucleus, so that texture is that of the tissue and not of the chromatin."""

MAX_PIXELS = 4_000_000
"""Pixels of the largest mask; a larger slide gets a coarser one."""

_COLOUR = 0.03
"""Spread of optical density from which on a pixel is stained. Faint eosin has 0.03–0.08 in the mean, clean
glass below 0.005; unevenly tinted glass may reach 0.02."""

_FAINT_COLOUR = 0.018
"""The same where there is texture, which unevenly tinted glass does not have."""

_COLOUR_OF_DARKNESS = 0.15
"""Spread over mean optical density below which a pixel is grey or black. Dense haematoxylin has 0.4–0.8."""

_BRIGHT = 170  # grey level of the darkest channel of glass
_GLASS_SHARE = 0.01  # of the picture; less is rather the palest spots of a slide full of tissue
_TINT = 40  # grey levels between the channels of glass
_PINK = 10  # grey levels that green lies below red and blue; glass is never pink, faint eosin is
_FAINT_TEXTURE = (
    2.0  # standard deviation of grey levels over 5 × 5 pixels; camera noise is averaged to below 1
)
_GLASS_TEXTURE = 2.5
_INK_TEXTURE = 6.0

_WINDOW = 5  # pixels, for texture
_STROKE = (
    256  # smooth pixels a marker stroke has at least; blue stains have smooth patches of ink's colour too
)
_INK_GROWTH = 8  # pixels from the smooth middle of a marker stroke to its frayed edge

_SPECK_UM2 = 64.0**2  # smaller islands are dust
_HOLE_UM2 = 140.0**2  # smaller holes are lumina, fat cells or tears

_Floats = NDArray[np.float32]
_Mask = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class TissueMask:
    """Where there is tissue, over the whole slide.

    Parameters
    ----------
    mask
        (h, w) bool; True is tissue. Pixel (i, j) covers level-0 x in [j·pixel_w, (j+1)·pixel_w), y likewise.
    pixel_w, pixel_h
        Level-0 pixels per mask pixel.
    """

    mask: _Mask
    pixel_w: float
    pixel_h: float

    @cached_property
    def _integral(self) -> NDArray[np.int64]:
        """(h+1, w+1): tissue pixels above and to the left of each corner."""
        h, w = self.mask.shape
        sums = np.zeros((h + 1, w + 1), np.int32 if h * w < 2**31 else np.int64)
        np.cumsum(self.mask, 0, out=sums[1:, 1:])
        np.cumsum(sums, 1, out=sums)
        return sums

    def fractions(self, x: ArrayLike, y: ArrayLike, w: ArrayLike, h: ArrayLike) -> NDArray[np.float64]:
        """Share of each box that is tissue, exact at fractional edges.

        Parameters
        ----------
        x, y, w, h
            Level-0 boxes, numbers or arrays that broadcast; what lies outside the slide is not tissue.

        Returns
        -------
        Shares in [0, 1], in the broadcast shape.
        """
        left, top = np.asarray(x, float) / self.pixel_w, np.asarray(y, float) / self.pixel_h
        mask_w, mask_h = np.asarray(w, float) / self.pixel_w, np.asarray(h, float) / self.pixel_h
        right, bottom = left + mask_w, top + mask_h
        area = self._area(right, bottom) - self._area(left, bottom) - self._area(right, top)
        return np.asarray(np.clip((area + self._area(left, top)) / (mask_w * mask_h), 0, 1))

    def _area(self, mask_x: NDArray[np.float64], mask_y: NDArray[np.float64]) -> NDArray[np.float64]:
        """Tissue left of and above a position: the integral image is bilinear within a pixel."""
        h, w = self.mask.shape
        mask_x, mask_y = np.clip(mask_x, 0, w), np.clip(mask_y, 0, h)
        column, row = np.minimum(mask_x.astype(int), w - 1), np.minimum(mask_y.astype(int), h - 1)
        along_x, along_y = mask_x - column, mask_y - row
        corners = self._integral
        upper = corners[row, column] * (1 - along_x) + corners[row, column + 1] * along_x
        lower = corners[row + 1, column] * (1 - along_x) + corners[row + 1, column + 1] * along_x
        return np.asarray(upper * (1 - along_y) + lower * along_y)

    def area_mm2(self, mpp: Mpp) -> float:
        """Tissue area in mm², for level-0 pixels of ``mpp`` µm."""
        return float(self.mask.sum() * self.pixel_w * mpp.x * self.pixel_h * mpp.y / 1e6)


def tissue_mask(slide: Slide, max_pixels: int = MAX_PIXELS) -> TissueMask:
    """Find the tissue of a slide stained with haematoxylin and eosin, DAB or the like.

    Parameters
    ----------
    slide
        Any slide; where its mpp is not known, the mask is as fine as ``max_pixels`` allows.
    max_pixels
        Most pixels the mask may have; it gets coarser on larger slides.

    Returns
    -------
    A mask without any tissue if the slide is empty. A grey picture has no stain, hence no tissue.

    Raises
    ------
    SlideError
        If the slide cannot be read.
    """
    (rgb,) = read_whole(slide, [mask_size(slide, max_pixels)])
    return mask_of(slide, rgb)


def mask_size(slide: Slide, max_pixels: int = MAX_PIXELS) -> Size:
    """Return the size in pixels of the picture in which the tissue of a slide is looked for."""
    size, mpp = slide.size, slide.stated_mpp
    scale = max(1.0, math.sqrt(size.w * size.h / max_pixels))
    scale_x = scale if mpp is None else max(scale, MASK_MPP / mpp.x)
    scale_y = scale if mpp is None else max(scale, MASK_MPP / mpp.y)
    return Size(max(1, round(size.w / scale_x)), max(1, round(size.h / scale_y)))


def mask_of(slide: Slide, rgb: NDArray[np.uint8]) -> TissueMask:
    """Find the tissue in a picture of the whole slide, (h, w, 3) uint8 RGB, best of `mask_size`."""
    size, mpp = slide.size, slide.stated_mpp
    pixel_w, pixel_h = size.w / rgb.shape[1], size.h / rgb.shape[0]
    pixel_um2 = MASK_MPP**2 if mpp is None else pixel_w * mpp.x * pixel_h * mpp.y
    return TissueMask(tissue_in(rgb, pixel_um2), pixel_w, pixel_h)


def tissue_in(rgb: NDArray[np.uint8], pixel_um2: float = MASK_MPP**2) -> _Mask:
    """Find the tissue in a picture of a few to 20 µm per pixel.

    Parameters
    ----------
    rgb
        (h, w, 3) uint8.
    pixel_um2
        Area of a pixel in µm², for the size of specks and holes.

    Returns
    -------
    (h, w) bool.
    """
    texture = _texture(rgb)
    density = _optical_density(rgb, _glass_colour(rgb, texture))
    spread, mean = density.max(axis=2) - density.min(axis=2), density.mean(axis=2)
    coloured = (spread >= _COLOUR) | ((spread >= _FAINT_COLOUR) & (texture >= _FAINT_TEXTURE))
    stained = coloured & (spread >= _COLOUR_OF_DARKNESS * mean)
    ink = _ink(density, spread, mean, texture)
    return _cleaned(stained & ~ink, pixel_um2) & ~ink


def ink_in(rgb: NDArray[np.uint8]) -> _Mask:
    """Find marker strokes in a picture of a few to 20 µm per pixel, (h, w, 3) uint8; (h, w) bool."""
    texture = _texture(rgb)
    density = _optical_density(rgb, _glass_colour(rgb, texture))
    return _ink(density, density.max(axis=2) - density.min(axis=2), density.mean(axis=2), texture)


def _texture(rgb: NDArray[np.uint8]) -> _Floats:
    """Local standard deviation of the grey level: cells and fibres have it, glass and ink do not."""
    grey = rgb.mean(axis=2, dtype=np.float32)
    mean = ndimage.uniform_filter(grey, _WINDOW)
    variance = ndimage.uniform_filter(grey * grey, _WINDOW) - mean * mean
    return np.asarray(np.sqrt(np.maximum(variance, 0)), np.float32)


def _glass_colour(rgb: NDArray[np.uint8], texture: _Floats) -> _Floats:
    """Colour of empty glass, (3,); white if the picture shows none.

    Glass is bright, smooth, nearly neutral and brighter than what lies on it, so the brightest of such pixels
    count. Pure white is left out where it can be: it is the filling around a scan and not glass.
    """
    low, high = rgb.min(axis=2).astype(np.int16), rgb.max(axis=2).astype(np.int16)
    pink = (rgb[..., 0].astype(np.int16) + rgb[..., 2]) / 2 - rgb[..., 1]
    glass = (low >= _BRIGHT) & (high - low <= _TINT) & (pink <= _PINK) & (texture <= _GLASS_TEXTURE)
    glass &= low < 255
    if np.count_nonzero(glass) < _GLASS_SHARE * glass.size:
        return np.full(3, 255, np.float32)
    pixels = rgb[glass]
    brightness = pixels.mean(axis=1)
    brightest = pixels[brightness >= np.percentile(brightness, 95) - 10]
    return np.asarray(np.median(brightest, axis=0), np.float32)


def _optical_density(rgb: NDArray[np.uint8], glass: _Floats) -> _Floats:
    """−log10(I / glass) per channel, at least 0, of intensities averaged over 3 × 3 pixels against noise."""
    light = ndimage.uniform_filter(rgb.astype(np.float32), (3, 3, 1))
    return np.asarray(np.maximum(-np.log10(np.maximum(light, 1) / glass), 0), np.float32)


def _ink(density: _Floats, spread: _Floats, mean: _Floats, texture: _Floats) -> _Mask:
    """Marker strokes: smooth patches in colours of ink, and what frays out from them in the same colour."""
    coloured = _ink_coloured(density, spread, mean)
    smooth = coloured & (texture <= _INK_TEXTURE)
    middle: _Mask = ndimage.binary_opening(smooth, np.ones((_WINDOW, _WINDOW)))
    middle &= ~_small(middle, _STROKE)
    if not middle.any():
        return middle
    stroke = ndimage.binary_dilation(middle, iterations=_INK_GROWTH, mask=coloured)
    return np.asarray(ndimage.binary_dilation(stroke, iterations=2))


def _ink_coloured(density: _Floats, spread: _Floats, mean: _Floats) -> _Mask:
    """Pixels with the optical density ratios of markers.

    Haematoxylin has about (0.65, 0.70, 0.29), eosin (0.07, 0.99, 0.11) and DAB (0.27, 0.57, 0.78) for red,
    green and blue (Ruifrok and Johnston 2001). So stains absorb green at least nearly as much as red, which
    blue and green ink do not; and none absorbs green and blue alike but red hardly, as red ink does.
    """
    red, green, blue = density[..., 0], density[..., 1], density[..., 2]
    blue_ink = (red > 1.3 * green) & (spread > 0.25)
    green_ink = (green < 0.8 * np.minimum(red, blue)) & (spread > 0.15)
    red_ink = (red < 0.25 * green) & (blue > 0.75 * green) & (spread > 0.6)
    black_ink = (mean > 0.6) & (spread < 0.3 * mean)
    return np.asarray(blue_ink | green_ink | red_ink | black_ink)


def _cleaned(tissue: _Mask, pixel_um2: float) -> _Mask:
    """Join what is a pixel apart, drop lines and specks, fill small holes."""
    disc = ndimage.iterate_structure(ndimage.generate_binary_structure(2, 1), 2)
    margin = 2  # so that closing does not eat tissue at the picture's edge
    joined = ndimage.binary_closing(np.pad(tissue, margin, mode="edge"), disc)
    opened = ndimage.binary_opening(joined, np.ones((3, 3)))[margin:-margin, margin:-margin]
    without_specks = opened & ~_small(opened, _SPECK_UM2 / pixel_um2)
    return np.asarray(without_specks | _small(~without_specks, _HOLE_UM2 / pixel_um2, inside=True))


def _small(mask: _Mask, pixels: float, *, inside: bool = False) -> _Mask:
    """Keep only connected parts with fewer than ``pixels`` pixels, if wanted only off the picture's edge."""
    labels, _ = ndimage.label(mask)
    small = np.bincount(labels.ravel()) < pixels
    if inside:
        small[np.unique(np.concatenate([labels[0], labels[-1], labels[:, 0], labels[:, -1]]))] = False
    small[0] = False
    return np.asarray(small[labels])
