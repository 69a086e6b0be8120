"""Draw an H&E-like tissue section with known tumour nests, and write it as an Aperio slide.

The section is drawn in optical densities of haematoxylin, eosin and blood at 0.5 µm per pixel and turned
into light by the Beer-Lambert law, so that overlaps, folds and stain strength behave as they do on glass.
Everything follows from one seed. All positions are level-0 pixels, arrays are (row, column).
"""

from __future__ import annotations

import argparse
import json
import math
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import tifffile
from PIL import Image, ImageDraw
from scipy import ndimage
from scipy.spatial import cKDTree

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    Floats = NDArray[np.float32]
    Mask = NDArray[np.bool_]

MPP = 0.5
SEED = 35
SLIDE_W, SLIDE_H = 4608, 4096
NORMAL_NUCLEUS, TUMOUR_NUCLEUS = 1, 2
COARSE = 8  # pixels of the map on which the layout is decided


@dataclass(frozen=True)
class Stain:
    """How one laboratory's section absorbs light.

    Parameters
    ----------
    haematoxylin, eosin, blood
        Optical density (natural logarithm) of one unit of each in red, green and blue.
    glass
        Colour of the empty slide, 0 to 255.
    """

    haematoxylin: tuple[float, float, float] = (1.32, 1.62, 0.80)
    eosin: tuple[float, float, float] = (0.13, 1.10, 0.62)
    blood: tuple[float, float, float] = (0.12, 1.15, 1.02)
    glass: tuple[float, float, float] = (243.0, 241.5, 244.5)

    @classmethod
    def random(cls, rng: np.random.Generator) -> Stain:
        """Draw another laboratory: hue and strength of each dye and the glass differ."""

        def vary(dye: tuple[float, float, float]) -> tuple[float, float, float]:
            return _triple(np.array(dye) * rng.uniform(0.75, 1.2) * rng.uniform(0.88, 1.12, 3))

        base = cls()
        glass = _triple(np.minimum(rng.uniform(228, 249) + rng.normal(0, 2.0, 3), 252))
        return cls(vary(base.haematoxylin), vary(base.eosin), vary(base.blood), glass)


def _triple(values: NDArray[np.float64]) -> tuple[float, float, float]:
    return float(values[0]), float(values[1]), float(values[2])


@dataclass(frozen=True)
class Scene:
    """A drawn section with everything that is known about it.

    Parameters
    ----------
    image
        (H, W, 3) uint8 RGB at 0.5 µm per pixel.
    tissue, nests, artefacts
        (H, W) bool: tissue on the glass; inside a tumour nest; under the fold or the pen mark.
    nuclei
        (H, W) uint8: 0 none, `NORMAL_NUCLEUS` or `TUMOUR_NUCLEUS`.
    polygons
        Outline of each nest, (V, 2) int32 x and y in pixels, not closed.
    """

    image: NDArray[np.uint8]
    tissue: Mask
    nests: Mask
    artefacts: Mask
    nuclei: NDArray[np.uint8]
    polygons: list[NDArray[np.int32]]


@dataclass(frozen=True)
class _Disc:
    x: float
    y: float
    r: float


@dataclass
class _Section:
    """The densities while they are drawn, all (H, W)."""

    rng: np.random.Generator
    tissue: Mask
    cover: Floats  # 0 on glass, 1 in tissue, soft at the edge
    eosin: Floats
    haematoxylin: Floats
    blood: Floats
    nuclear: Floats  # haematoxylin of nuclei alone
    nuclei: NDArray[np.uint8]
    flow: Floats  # direction of the fibres, radians, at half resolution
    chromatin: Floats = field(init=False)

    def __post_init__(self) -> None:
        grain = ndimage.gaussian_filter(self.rng.standard_normal((512, 512)), 1.25, mode="wrap")
        self.chromatin = np.clip(grain / grain.std(), -2, 2).astype(np.float32)

    @property
    def shape(self) -> tuple[int, int]:
        return self.tissue.shape[0], self.tissue.shape[1]

    def window(self, x: float, y: float, reach: float) -> tuple[slice, slice]:
        """Rows and columns around a point, cut at the frame; empty outside it."""

        def span(middle: float, length: int) -> slice:
            start, stop = np.clip([int(middle - reach), int(middle + reach) + 1], 0, length)
            return slice(int(start), int(stop))

        return span(y, self.shape[0]), span(x, self.shape[1])

    def fill(self, where: tuple[slice, slice], weight: Floats, eosin: Floats, haematoxylin: Floats) -> None:
        """Put another tissue over what is there, as opaque as ``weight`` says."""
        self.eosin[where] += weight * (eosin - self.eosin[where])
        self.haematoxylin[where] += weight * (haematoxylin - self.haematoxylin[where])

    def clear(self, where: tuple[slice, slice], weight: Floats) -> None:
        """Cut a hole."""
        self.eosin[where] *= 1 - weight
        self.haematoxylin[where] *= 1 - weight


# ---------------------------------------------------------------------------------------------- noise


def _resize(image: Floats, shape: tuple[int, int]) -> Floats:
    h, w = shape
    scaled = Image.fromarray(np.ascontiguousarray(image, np.float32)).resize((w, h), Image.Resampling.BICUBIC)
    return np.asarray(scaled, np.float32)


def _noise(rng: np.random.Generator, shape: tuple[int, int], scale: float) -> Floats:
    """Smooth noise of unit deviation whose hills are ``scale`` pixels apart."""
    h, w = (max(3, math.ceil(length / scale) + 2) for length in shape)
    knots = rng.standard_normal((h, w)).astype(np.float32)
    tall, wide = math.ceil(h * scale), math.ceil(w * scale)
    grown = _resize(knots, (tall, wide))
    top, left = round(scale), round(scale)
    hills: Floats = grown[top : top + shape[0], left : left + shape[1]] * np.float32(1.5)
    return hills


def _fractal(rng: np.random.Generator, shape: tuple[int, int], scale: float, octaves: int) -> Floats:
    """Sum of noises, each half as wide and half as high as the one before."""
    total = np.zeros(shape, np.float32)
    for octave in range(octaves):
        total += _noise(rng, shape, scale / 2**octave) / 2**octave
    return total


def _sigmoid(x: NDArray[np.floating]) -> Floats:
    return np.asarray(0.5 * (1 + np.tanh(0.5 * x)), np.float32)


def _grown_mask(mask: Mask, shape: tuple[int, int]) -> Mask:
    return _resize(mask.astype(np.float32), shape) > 0.5


# --------------------------------------------------------------------------------------------- layout


@dataclass(frozen=True)
class _Layout:
    """Where what lies; decided before anything is drawn."""

    polygons: list[NDArray[np.int32]]
    glands: list[_Disc]
    vessels: list[_Disc]
    fat: Mask
    lymphoid: Mask


def _outline(rng: np.random.Generator, shape: tuple[int, int]) -> Floats:
    """Depth below the section's edge in pixels, negative on glass; (H, W) coarse."""
    h, w = shape
    v, u = np.mgrid[-1 : 1 : h * 1j, -1 : 1 : w * 1j].astype(np.float32)
    centre_u, centre_v = rng.uniform(-0.08, 0.08, 2)
    turn = rng.uniform(0, np.pi)
    along = (u - centre_u) * np.cos(turn) + (v - centre_v) * np.sin(turn)
    across = (v - centre_v) * np.cos(turn) - (u - centre_u) * np.sin(turn)
    radius = np.hypot(along / 0.94, across / 0.78)
    hills = 0.16 * _fractal(rng, shape, min(h, w) / 3, 4)
    frame = np.minimum(1 - abs(u), 1 - abs(v)) * 4  # glass all around: the section ends before the frame
    depth: Floats = np.minimum(1 - radius + hills, frame - 0.42 + 1.4 * hills) * min(h, w) * COARSE / 2
    return depth.astype(np.float32)


def _scatter(
    rng: np.random.Generator, room: Floats, radii: Sequence[float], taken: Sequence[_Disc], gap: float
) -> list[_Disc]:
    """Place discs, largest first, where ``room`` (pixels to the nearest obstacle, coarse map) allows."""
    placed: list[_Disc] = []
    for r in sorted(radii, reverse=True):
        rows, columns = np.nonzero(room > r + gap)
        for _ in range(60 if len(rows) else 0):
            i = int(rng.integers(len(rows)))
            disc = _Disc(float((columns[i] + 0.5) * COARSE), float((rows[i] + 0.5) * COARSE), float(r))
            others = [*taken, *placed]
            if all(math.hypot(disc.x - o.x, disc.y - o.y) > disc.r + o.r + gap for o in others):
                placed.append(disc)
                break
    return placed


def _nest_polygon(rng: np.random.Generator, disc: _Disc) -> NDArray[np.int32]:
    """Irregular outline that just fits into its disc; (V, 2) x and y."""
    angle = np.linspace(0, 2 * np.pi, 96, endpoint=False)
    radius = np.ones_like(angle)
    for k in range(2, 15):
        radius += rng.normal(0, 0.34 / k) * np.cos(k * angle + rng.uniform(0, 2 * np.pi))
    radius = np.maximum(radius, 0.35)
    turn, flat = rng.uniform(0, np.pi), rng.uniform(0.55, 1.0)
    x, y = radius * np.cos(angle), flat * radius * np.sin(angle)
    x, y = x * np.cos(turn) - y * np.sin(turn), x * np.sin(turn) + y * np.cos(turn)
    size = disc.r / np.hypot(x, y).max()
    outline = np.stack([disc.x + x * size, disc.y + y * size], axis=1)
    return np.asarray(np.rint(outline), np.int32)


def _rasterise(polygons: Sequence[NDArray[np.int32]], shape: tuple[int, int]) -> Mask:
    canvas = Image.new("1", (shape[1], shape[0]))
    pen = ImageDraw.Draw(canvas)
    for polygon in polygons:
        pen.polygon([(int(x), int(y)) for x, y in polygon], fill=1)
    return np.asarray(canvas, bool)


def _lay_out(rng: np.random.Generator, depth: Floats) -> _Layout:
    """Decide on the compartments; ``depth`` is coarse."""
    tissue = depth > 0
    area = depth.size * COARSE**2 / 1e6  # of the frame, megapixels
    zones = _fractal(rng, (depth.shape[0], depth.shape[1]), 90, 2)
    fat = tissue & (zones > 2.3)
    room = (ndimage.distance_transform_edt(tissue & ~fat) * COARSE).astype(np.float32)
    largest = min(430.0, 0.23 * min(depth.shape) * COARSE)
    nests = _scatter(
        rng, room, list(rng.uniform(min(110, 0.6 * largest), largest, max(3, round(area * 0.95)))), [], 30
    )
    glands = _scatter(rng, room, list(rng.uniform(55, 105, max(2, round(area * 2.2)))), nests, 14)
    vessels = _scatter(rng, room, list(rng.uniform(22, 60, max(2, round(area * 1.3)))), [*nests, *glands], 14)
    lymphoid = tissue & ~fat & (_fractal(rng, (depth.shape[0], depth.shape[1]), 60, 2) > 1.25)
    return _Layout([_nest_polygon(rng, disc) for disc in nests], glands, vessels, fat, lymphoid)


# --------------------------------------------------------------------------------------------- stroma


def _fibre_flow(rng: np.random.Generator, shape: tuple[int, int], nests: Mask) -> Floats:
    """Direction of the collagen at half resolution: along the contours of hills, and around the nests."""
    hills = 260 * _noise(rng, shape, 1100) + 26 * _noise(rng, shape, 240) + 4.5 * _noise(rng, shape, 48)
    small = ndimage.distance_transform_edt(~nests[::4, ::4]).astype(np.float32) * 4
    hills += 160 * np.exp(-_resize(small, shape) / 60)
    dy, dx = np.gradient(hills)
    return np.asarray(np.arctan2(dx, -dy), np.float32)


def _stroke_along(flow: Floats, grain: Floats, where: Mask, steps: int) -> Floats:
    """Smear ``grain`` along ``flow`` (line integral convolution), unit deviation where ``where``."""
    h, w = flow.shape
    step_x, step_y = np.cos(flow), np.sin(flow)
    rows, columns = np.nonzero(where)
    total = grain[rows, columns].astype(np.float32)
    for sign in (-1, 1):
        y, x = rows.astype(np.float32), columns.astype(np.float32)
        i, j = rows, columns
        for _ in range(steps):
            x += sign * step_x[i, j]
            y += sign * step_y[i, j]
            j = np.clip(x + 0.5, 0, w - 1).astype(np.intp)
            i = np.clip(y + 0.5, 0, h - 1).astype(np.intp)
            total += grain[i, j]
    fibres = np.zeros_like(flow)
    fibres[where] = (total - total.mean()) / total.std()
    return fibres


def _draw_stroma(section: _Section) -> None:
    """Fill the section with wavy collagen fibres and clefts between them."""
    rng, shape = section.rng, section.shape
    half = section.flow.shape[0], section.flow.shape[1]
    where = section.tissue[::2, ::2][: half[0], : half[1]]
    grain = rng.standard_normal(half).astype(np.float32)
    bundles = grain + 4.2 * ndimage.gaussian_filter(grain, 1.6).astype(np.float32)
    fibres = _resize(_stroke_along(section.flow, bundles, where, 15), shape)
    loose = _fractal(rng, shape, 260, 2)
    section.eosin[:] = 0.47 * (1 + 0.24 * fibres) * (1 + 0.10 * loose)
    section.haematoxylin[:] = 0.035 + 0.012 * _noise(rng, shape, 90)
    cleft = _sigmoid((-fibres - 1.35 + 0.3 * loose) * 5)
    section.clear((slice(None), slice(None)), 0.9 * cleft)


def _draw_lymphoid(section: _Section, lymphoid: Mask) -> None:
    """Thin out the fibres where lymphocytes will crowd."""
    soft = _resize(lymphoid.astype(np.float32), section.shape)
    soft = np.clip(ndimage.uniform_filter(soft, 25), 0, 1)
    everywhere = (slice(None), slice(None))
    mesh = 0.24 * (1 + 0.25 * _noise(section.rng, section.shape, 5))
    section.fill(everywhere, 0.8 * soft, mesh, np.full(section.shape, 0.10, np.float32))


def _draw_nests(section: _Section, nests: Mask, centres: Floats) -> None:
    """Fill the nests with cells: amphophilic cytoplasm of uneven strength, faint membranes."""
    rng, shape = section.rng, section.shape
    soft = ndimage.uniform_filter(nests.astype(np.float32), 5)
    eosin = 0.40 * (1 + 0.12 * _noise(rng, shape, 7))
    if len(centres) > 2:
        half = nests[::2, ::2]
        rows, columns = np.nonzero(half)
        points = np.stack([columns, rows], axis=1) * 2.0 + rng.normal(0, 0.6, (len(rows), 2))
        distance, owner = cKDTree(centres).query(points, k=2)
        membrane = np.clip(1 - (distance[:, 1] - distance[:, 0]) / 5, 0, 1)
        paint = np.ones(half.shape, np.float32)
        paint[rows, columns] = rng.uniform(0.62, 1.15, len(centres))[owner[:, 0]] + 0.28 * membrane
        eosin *= _resize(paint, shape)
    section.fill((slice(None), slice(None)), soft, eosin, 0.17 + 0.045 * _noise(rng, shape, 40))
    _draw_retraction(section, nests)


def _draw_retraction(section: _Section, nests: Mask) -> None:
    """Cut the thin white gap that shrinkage leaves along part of a nest's edge."""
    ring = ndimage.binary_dilation(nests, iterations=4) & ~nests
    soft = ndimage.uniform_filter(ring.astype(np.float32), 3)
    section.clear(
        (slice(None), slice(None)), 0.85 * soft * _sigmoid(4 * _noise(section.rng, section.shape, 110))
    )


def _draw_fat(section: _Section, fat: Mask) -> None:
    """Cut large round holes with thin walls."""
    half = _grown_mask(fat, section.shape)[::2, ::2] & section.tissue[::2, ::2]
    if not half.any():
        return
    rows, columns = np.nonzero(half)
    centres = _lattice(section.rng, section.shape, 92, 19)
    distance, _ = cKDTree(centres).query(np.stack([columns, rows], axis=1) * 2.0, k=2)
    inner = ndimage.distance_transform_edt(half)[rows, columns] * 2
    to_wall = np.minimum((distance[:, 1] - distance[:, 0]) / 1.6, 56 - distance[:, 0])
    hole = np.zeros(half.shape, np.float32)
    hole[rows, columns] = np.clip((np.minimum(to_wall, inner) - 3.5) / 2.5, 0, 1)
    section.clear((slice(None), slice(None)), _resize(hole, section.shape))


# ------------------------------------------------------------------------------------ glands, vessels


def _wave(angle: NDArray[np.floating], disc: _Disc) -> NDArray[np.floating]:
    """Radius of a gland or vessel in each direction, about 1; its own for each position."""
    wave = 1 + 0.13 * np.cos(2 * angle + disc.x) + 0.08 * np.cos(3 * angle + disc.y)
    return np.asarray(wave + 0.04 * np.cos(5 * angle + disc.x + disc.y))


def _polar(section: _Section, disc: _Disc, reach: float) -> tuple[tuple[slice, slice], Floats, Floats]:
    """Window around a disc with radius (disc = 1, slightly wavy) and angle of each pixel."""
    rows, columns = section.window(disc.x, disc.y, disc.r * reach)
    y, x = np.mgrid[rows, columns].astype(np.float32)
    angle = np.arctan2(y - disc.y, x - disc.x)
    wave = _wave(angle, disc)
    return (rows, columns), np.hypot(x - disc.x, y - disc.y) / (disc.r * wave), angle


def _draw_gland(section: _Section, disc: _Disc) -> None:
    """Draw a ring of columnar cells with basal nuclei around a white lumen."""
    rng = section.rng
    lumen = float(rng.uniform(0.2, 0.5))
    where, radius, angle = _polar(section, disc, 1.3)
    edge = disc.r / 2.0
    weight = _sigmoid((1 - radius) * edge)
    cells = 1 + 0.13 * np.asarray(np.cos(angle * round(2 * np.pi * disc.r / 17)) ** 8, np.float32)
    apical = np.asarray(0.20 * np.exp(-(((radius - lumen) * disc.r / 4) ** 2)), np.float32)
    rough = (1 + 0.13 * _noise(rng, (weight.shape[0], weight.shape[1]), 6)).astype(np.float32)
    section.fill(where, weight, 0.34 * cells * rough + apical, (0.10 + 0.07 * radius) * rough)
    section.clear(where, 0.96 * _sigmoid((lumen - radius) * edge))
    n = max(8, round(2 * np.pi * 0.78 * disc.r / 15.5))
    theta = (np.arange(n) + rng.uniform(-0.25, 0.25, n)) * 2 * np.pi / n
    wave = _wave(theta, disc)
    ring = disc.r * wave * (1 - 10.5 / disc.r + rng.normal(0, 2.0, n) / disc.r)
    centres = np.stack([disc.x + ring * np.cos(theta), disc.y + ring * np.sin(theta)], axis=1)
    _stamp(section, centres, GLANDULAR, theta.astype(np.float32))


def _draw_vessel(section: _Section, disc: _Disc) -> None:
    """Draw a thin-walled vessel with red cells in it."""
    rng = section.rng
    where, radius, _ = _polar(section, disc, 1.4)
    wall = np.exp(-(((radius - 1) * disc.r / 5) ** 2)).astype(np.float32)
    section.fill(where, wall, np.full_like(wall, 0.62), np.full_like(wall, 0.08))
    section.clear(where, _sigmoid((0.93 - radius) * disc.r / 1.5))
    n = round(rng.uniform(0.2, 0.9) * (disc.r / 7.5) ** 2)
    theta, ring = rng.uniform(0, 2 * np.pi, n), np.sqrt(rng.uniform(0, 0.62, n)) * disc.r
    for x, y in zip(disc.x + ring * np.cos(theta), disc.y + ring * np.sin(theta), strict=True):
        rows, columns = section.window(x, y, 9)
        dy, dx = np.mgrid[rows, columns].astype(np.float32)
        depth = 6.6 - np.hypot(dx - x, dy - y)
        cell = 0.62 * np.clip(depth / 1.5, 0, 1) * (1 - 0.3 * np.clip((depth - 2) / 5, 0, 1))
        section.blood[rows, columns] = np.maximum(section.blood[rows, columns], cell)
    n = max(4, round(disc.r / 5))
    theta = rng.uniform(0, 2 * np.pi, n)
    centres = np.stack([disc.x + disc.r * np.cos(theta), disc.y + disc.r * np.sin(theta)], axis=1)
    _stamp(section, centres, SPINDLE, (theta + np.pi / 2).astype(np.float32))


# --------------------------------------------------------------------------------------------- nuclei


@dataclass(frozen=True)
class _Kind:
    """How the nuclei of one cell type look; lengths in pixels, mean and deviation."""

    label: int
    semi_axis: tuple[float, float]
    aspect: tuple[float, float]  # from, to
    irregular: float
    density: tuple[float, float]
    hollow: float  # how much paler the inside is than the rim
    grain: float
    nucleoli: float  # share of nuclei with one


TUMOUR = _Kind(TUMOUR_NUCLEUS, (13.6, 2.5), (0.60, 0.95), 0.070, (0.98, 0.14), 0.34, 0.15, 0.45)
LYMPHOCYTE = _Kind(NORMAL_NUCLEUS, (6.6, 0.6), (0.86, 1.0), 0.020, (1.02, 0.10), 0.12, 0.13, 0.0)
GLANDULAR = _Kind(NORMAL_NUCLEUS, (8.6, 0.7), (0.66, 0.80), 0.015, (0.72, 0.07), 0.22, 0.10, 0.0)
SPINDLE = _Kind(NORMAL_NUCLEUS, (12.0, 2.5), (0.20, 0.36), 0.040, (0.86, 0.12), 0.10, 0.10, 0.0)


def _lattice(rng: np.random.Generator, shape: tuple[int, int], spacing: float, jitter: float) -> Floats:
    """Points of a disturbed hexagonal lattice, (n, 2) x and y, all inside the frame."""
    h, w = shape
    rows = np.arange(0, h, spacing * 0.866)
    columns = np.arange(0, w, spacing)
    x = columns[None] + (np.arange(len(rows)) % 2)[:, None] * spacing / 2
    y = np.broadcast_to(rows[:, None], x.shape)
    points = np.stack([x, y], axis=-1).reshape(-1, 2) + rng.normal(0, jitter, (x.size, 2))
    rounded = points.astype(np.float32)  # first: rounding may reach the frame's edge
    return rounded[((rounded >= 0) & (rounded < [w, h])).all(axis=1)]


def _in_mask(points: Floats, mask: Mask) -> Mask:
    index = points.astype(np.intp)
    return np.asarray(mask[index[:, 1], index[:, 0]], bool)


def _stamp(section: _Section, centres: NDArray[np.floating], kind: _Kind, angle: Floats) -> None:
    """Draw one nucleus at each centre in the frame; ``angle`` (n,) is the direction of the long axis."""
    inside = ((centres >= 0) & (centres < [section.shape[1], section.shape[0]])).all(axis=1)
    centres, angle = centres[inside], angle[inside]
    for start in range(0, len(centres), 256):
        part = slice(start, start + 256)
        _stamp_some(section, np.asarray(centres[part], np.float32), kind, angle[part])


def _stamp_some(section: _Section, centres: Floats, kind: _Kind, angle: Floats) -> None:
    h, w = section.shape
    major = np.clip(section.rng.normal(*kind.semi_axis, len(centres)), 0.6 * kind.semi_axis[0], 22)
    reach = math.ceil(float(major.max()) * 1.3) + 2 if len(major) else 0
    density, inside = _nuclei(section, kind, centres, angle, major.astype(np.float32), reach)
    for (x, y), shade, body in zip(centres.astype(int), density, inside, strict=True):
        top, left = max(0, reach - y), max(0, reach - x)
        bottom, right = min(2 * reach + 1, h - y + reach), min(2 * reach + 1, w - x + reach)
        rows, columns = slice(y - reach + top, y - reach + bottom), slice(x - reach + left, x - reach + right)
        shade, body = shade[top:bottom, left:right], body[top:bottom, left:right]
        below = section.nuclear[rows, columns]
        section.nuclear[rows, columns] = np.maximum(below, shade) + 0.22 * np.minimum(below, shade)
        section.nuclei[rows, columns][body] = kind.label


def _nuclei(
    section: _Section, kind: _Kind, centres: Floats, angle: Floats, major: Floats, reach: int
) -> tuple[Floats, Mask]:
    """Return density and body of each nucleus, both (n, 2 * reach + 1, 2 * reach + 1)."""
    rng, n = section.rng, len(centres)

    def each(values: NDArray[np.floating]) -> Floats:
        return np.asarray(values, np.float32)[:, None, None]

    dy, dx = np.mgrid[-reach : reach + 1, -reach : reach + 1].astype(np.float32)
    offset = centres - np.floor(centres)
    dx, dy = dx - each(offset[:, 0]), dy - each(offset[:, 1])
    minor = major * rng.uniform(*kind.aspect, n).astype(np.float32)
    cos, sin = each(np.cos(angle)), each(np.sin(angle))
    u, v = (dx * cos + dy * sin) / each(major), (dy * cos - dx * sin) / each(minor)
    phi = np.arctan2(v, u)
    contour = 1 + sum(
        each(rng.normal(0, 2.2 * kind.irregular / k, n)) * np.cos(k * phi + each(rng.uniform(0, 6.3, n)))
        for k in (2, 3, 4, 5)
    )
    depth = (contour - np.hypot(u, v)) * each(np.sqrt(major * minor))
    rim = np.exp(-(((depth - 1.2) / 1.6) ** 2))
    row, column = rng.integers(0, 512, (2, n))
    window = np.arange(2 * reach + 1)
    texture = section.chromatin[(row[:, None] + window) % 512][
        np.arange(n)[:, None, None], window[None, :, None], (column[:, None, None] + window) % 512
    ]
    shade = 1 - kind.hollow * (1 - rim) + kind.grain * texture
    shade += _nucleolus(rng, kind, dx, dy)
    shade *= each(np.maximum(rng.normal(*kind.density, n), 0.4))
    density = np.clip(depth / 1.8 + 0.5, 0, 1) * np.maximum(shade, 0.1)
    return density.astype(np.float32), np.asarray(depth > 0)


def _nucleolus(rng: np.random.Generator, kind: _Kind, dx: Floats, dy: Floats) -> Floats:
    """Extra density of a nucleolus near the middle of some nuclei."""
    n = len(dx)
    has = (rng.random(n) < kind.nucleoli) * rng.uniform(0.3, 0.6, n)
    x, y = rng.normal(0, 2.5, (2, n, 1, 1))
    spot: Floats = has[:, None, None] * np.exp(-((dx - x) ** 2 + (dy - y) ** 2) / 5.0)
    return spot


def _draw_nuclei(section: _Section, nests: Mask, tumour: Floats, layout: _Layout) -> None:
    """Fill the compartments with their cells."""
    rng = section.rng
    _stamp(section, tumour, TUMOUR, rng.uniform(0, np.pi, len(tumour)).astype(np.float32))
    free = section.tissue & ~ndimage.binary_dilation(nests, iterations=9)
    for disc in [*layout.glands, *layout.vessels]:
        where, radius, _ = _polar(section, disc, 1.3)
        free[where] &= radius > 1.06
    fat = _grown_mask(layout.fat, section.shape)
    border = _resize(ndimage.uniform_filter(layout.lymphoid.astype(np.float32), 7), section.shape)
    lymphoid = border + 0.22 * _noise(rng, section.shape, 22) > 0.5
    _scatter_cells(section, free & ~fat & ~lymphoid, 50, 0.75, SPINDLE)
    _scatter_cells(section, free & ~fat, 74, 0.45, LYMPHOCYTE)
    _scatter_cells(section, free & lymphoid & ~fat, 17.5, 0.93, LYMPHOCYTE)


def _scatter_cells(section: _Section, where: Mask, spacing: float, share: float, kind: _Kind) -> None:
    """Place cells of one kind on a disturbed lattice, their long axes along the fibres."""
    points = _lattice(section.rng, section.shape, spacing, spacing * 0.24)
    points = points[_in_mask(points, where) & (section.rng.random(len(points)) < share)]
    half = np.minimum((points / 2).astype(np.intp), np.array(section.flow.shape[::-1]) - 1)
    angle = section.flow[half[:, 1], half[:, 0]] + section.rng.normal(0, 0.18, len(points))
    _stamp(section, points, kind, angle.astype(np.float32))


# ----------------------------------------------------------------------------------- artefacts, light


def _distance_to_curve(shape: tuple[int, int], curve: NDArray[np.float64]) -> Floats:
    """Pixels from a polyline (x, y), computed coarsely."""
    canvas = Image.new("1", (-(-shape[1] // COARSE), -(-shape[0] // COARSE)))
    ImageDraw.Draw(canvas).line([(x / COARSE, y / COARSE) for x, y in curve], fill=1, width=1)
    away = ndimage.distance_transform_edt(~np.asarray(canvas, bool)) * COARSE
    return _resize(away.astype(np.float32), shape)


def _arc(
    rng: np.random.Generator, start: tuple[float, float], length: float, heading: float, bend: float
) -> NDArray[np.float64]:
    """Walk ``length`` pixels from ``start``, turning by about ``bend`` radians; (40, 2) x and y."""
    turns = heading + bend * np.linspace(-0.5, 0.5, 40) + np.cumsum(rng.normal(0, 0.05, 40))
    steps = np.stack([np.cos(turns), np.sin(turns)], axis=1) * length / 40
    return np.asarray(start) + np.cumsum(steps, axis=0)


def _fold_line(rng: np.random.Generator, free: Mask, length: float) -> NDArray[np.float64]:
    """Of many arcs, the one that runs longest through ``free`` (coarse map); (40, 2) x and y in pixels."""
    h, w = free.shape

    def inside(curve: NDArray[np.float64]) -> int:
        x, y = (np.clip(curve / COARSE, 0, [w - 1, h - 1])).astype(np.intp).T
        return int(np.count_nonzero(free[y, x]))

    starts = rng.uniform([0.1, 0.1], [0.9, 0.9], (200, 2)) * [w * COARSE, h * COARSE]
    curves = [_arc(rng, (x, y), length, rng.uniform(0, 6.3), rng.uniform(-1.2, 1.2)) for x, y in starts]
    return max(curves, key=inside)


def _draw_fold(section: _Section, depth: Floats, taken: Mask) -> Mask:
    """Lay a strip of tissue twice, shifted; kept off ``taken``. Returns where, (H, W)."""
    rng, (h, w) = section.rng, section.shape
    keep_off = ndimage.distance_transform_edt(~taken).astype(np.float32) * COARSE
    curve = _fold_line(rng, (depth > 0) & (keep_off > 60), min(h, w) * rng.uniform(0.28, 0.42))
    away = _distance_to_curve(section.shape, curve) + 5 * _noise(rng, section.shape, 60)
    width = float(rng.uniform(17, 30))
    weight = _sigmoid((width - away) / 2.5) * _sigmoid((_resize(keep_off, section.shape) - 40) / 8)
    shift = (round(rng.uniform(30, 60)), round(rng.uniform(-60, -30)))
    for density in (section.eosin, section.haematoxylin, section.nuclear):
        density += weight * np.roll(density, shift, axis=(0, 1))
        density += weight * 0.25 * density
    return (weight > 0.3) & section.tissue


def _pen_density(rng: np.random.Generator, shape: tuple[int, int]) -> Floats:
    """Thickness of a felt-pen stroke near the border of the slide, 0 where there is none."""
    h, w = shape
    side = int(rng.integers(4))
    reach = rng.uniform(0.05, 0.085)
    u, v = [(0.3, reach), (1 - reach, 0.3), (0.7, 1 - reach), (reach, 0.7)][side]
    curve = _arc(rng, (u * w, v * h), 0.42 * min(h, w), side * np.pi / 2, rng.uniform(-0.5, 0.5))
    away = _distance_to_curve(shape, curve) + 2.5 * _noise(rng, shape, 25)
    width = float(rng.uniform(24, 42))
    streaks = 1 + 0.10 * np.sin(away / 3.0) + 0.12 * _noise(rng, shape, 160)
    return _sigmoid((width - away) / 5) * np.maximum(streaks, 0.2).astype(np.float32)


PEN_INKS = ((2.2, 1.35, 0.35), (1.9, 0.7, 1.5), (1.7, 1.75, 1.7))  # blue, green, black: density in R, G, B


def _illuminate(
    section: _Section, pen: Floats, ink: tuple[float, float, float], stain: Stain
) -> NDArray[np.uint8]:
    """Turn densities into light (Beer-Lambert), with uneven lamp, blur of the optics and camera noise."""
    rng, (h, w) = section.rng, section.shape
    lamp = 1 - 0.012 * _resize(rng.standard_normal((4, 4)).astype(np.float32), (h, w))
    dust = np.clip(_noise(rng, (h, w), 7) - 4.4, 0, 0.5)
    image = np.empty((h, w, 3), np.uint8)
    for band in range(3):
        density = stain.haematoxylin[band] * (section.haematoxylin + section.nuclear)
        density += stain.eosin[band] * section.eosin + stain.blood[band] * section.blood
        density = density * section.cover + ink[band] * pen + dust
        light = stain.glass[band] * lamp * np.exp(-density)
        light = ndimage.gaussian_filter(light, 0.75)
        light += rng.standard_normal((h, w), np.float32) * 1.1
        image[:, :, band] = np.clip(light + 0.5, 0, 255)
    return image


# ---------------------------------------------------------------------------------------------- scene


def draw_scene(seed: int, width: int, height: int, stain: Stain | None = None) -> Scene:
    """Draw a whole section of ``width`` × ``height`` pixels (multiples of 8) at 0.5 µm per pixel.

    Parameters
    ----------
    seed
        Everything follows from it.
    width, height
        Size in pixels; below about 1000 a section holds few nests.
    stain
        The laboratory; without one it is drawn at random.

    Raises
    ------
    ValueError
        If the size is not a multiple of 8.
    """
    rng, depth, layout = _planned(seed, width, height)
    stain = Stain.random(np.random.default_rng([seed, 1])) if stain is None else stain
    nests = _rasterise(layout.polygons, (height, width))
    section = _blank_section(rng, depth, nests)
    _draw_tissue(section, nests, layout)
    artefacts = _draw_fold(section, depth, _grown_mask(nests, (depth.shape[0], depth.shape[1])))
    pen = _pen_density(rng, section.shape)
    ink = PEN_INKS[int(rng.integers(len(PEN_INKS)))]
    image = _illuminate(section, pen, ink, stain)
    return Scene(image, section.tissue, nests, artefacts | (pen > 0.1), section.nuclei, layout.polygons)


def nest_polygons(seed: int, width: int, height: int) -> list[NDArray[np.int32]]:
    """Return the nests that `draw_scene` will draw, without drawing; (V, 2) x and y in pixels each."""
    return _planned(seed, width, height)[2].polygons


def _planned(seed: int, width: int, height: int) -> tuple[np.random.Generator, Floats, _Layout]:
    if width % COARSE or height % COARSE:
        raise ValueError(f"the size {width} x {height} is not a multiple of {COARSE}")
    rng = np.random.default_rng(seed)
    depth = _outline(rng, (height // COARSE, width // COARSE))
    return rng, depth, _lay_out(rng, depth)


def _blank_section(rng: np.random.Generator, depth: Floats, nests: Mask) -> _Section:
    height, width = nests.shape
    edge = _resize(depth, (height, width)) + 5 * _noise(rng, (height, width), 22)
    edge += 2 * _noise(rng, (height, width), 7)
    empty: Callable[[], Floats] = lambda: np.zeros((height, width), np.float32)  # noqa: E731
    return _Section(
        rng=rng,
        tissue=edge > 0,
        cover=_sigmoid(edge / 1.5),
        eosin=empty(),
        haematoxylin=empty(),
        blood=empty(),
        nuclear=empty(),
        nuclei=np.zeros((height, width), np.uint8),
        flow=_fibre_flow(rng, (height, width), nests)[::2, ::2].copy(),
    )


def _draw_tissue(section: _Section, nests: Mask, layout: _Layout) -> None:
    rng = section.rng
    tumour = _lattice(rng, section.shape, 28.5, 5.0)
    inner = ndimage.binary_erosion(nests, iterations=6)
    tumour = tumour[_in_mask(tumour, inner) & (rng.random(len(tumour)) < 0.96)]
    _draw_stroma(section)
    _draw_lymphoid(section, layout.lymphoid)
    _draw_nests(section, nests, tumour)
    _draw_fat(section, layout.fat)
    for disc in layout.glands:
        _draw_gland(section, disc)
    for disc in layout.vessels:
        _draw_vessel(section, disc)
    _draw_nuclei(section, nests, tumour, layout)
    section.eosin *= 1 - 0.55 * np.clip(section.nuclear, 0, 1)
    thickness = 1 + 0.05 * _fractal(rng, section.shape, 500, 2)
    section.eosin *= thickness
    section.nuclear *= thickness
    section.nuclei[~section.tissue] = 0


# ---------------------------------------------------------------------------------------------- files


def write_svs(
    path: Path,
    image: NDArray[np.uint8],
    quality: int,
    mpp: float = MPP,
    origin: str = "drawn by make_sample.py",
) -> None:
    """Write an (H, W, 3) image as an Aperio slide: JPEG tiles at 1, 1/4 and 1/16 and a thumbnail.

    The small levels cost little and are mostly edges, so they get a finer quality and full colour. ``mpp`` is
    µm per pixel, and ``origin`` stands in the slide as its file name.
    """
    full = Image.fromarray(image)
    w, h = full.size
    head, facts = "Aperio Image Library v11.2.1 \r\n", f"|AppMag = {10 / mpp:g}|MPP = {mpp:.4f}"
    small = min(quality + 8, 95)
    with tifffile.TiffWriter(path) as out:
        size = f"{w}x{h} [0,0 {w}x{h}] (256x256)"
        name = f"|Filename = {origin}"
        _write_page(out, full, f"{head}{size} JPEG/RGB Q={quality}{facts}{name}", quality, (2, 2), tiled=True)
        thumbnail = full.resize((w // 8, h // 8), Image.Resampling.BOX)
        _write_page(
            out, thumbnail, f"{head}{w}x{h} -> {w // 8}x{h // 8} - {facts}", small, (1, 1), tiled=False
        )
        for factor in (4, 16):
            level = full.resize((w // factor, h // factor), Image.Resampling.BOX)
            described = f"{head}{size} -> {w // factor}x{h // factor} JPEG/RGB Q={small}"
            _write_page(out, level, described, small, (1, 1), tiled=True)


def _write_page(
    out: tifffile.TiffWriter,
    picture: Image.Image,
    description: str,
    quality: int,
    subsampling: tuple[int, int],
    *,
    tiled: bool,
) -> None:
    out.write(
        np.asarray(picture),
        photometric="rgb",
        compression="jpeg",
        compressionargs={"level": quality, "optimize": True},
        subsampling=subsampling,
        tile=(256, 256) if tiled else None,
        rowsperstrip=None if tiled else picture.size[1],
        description=description,
        metadata=None,
        software=False,
    )


def annotation(
    key: str, name: str, rings: Sequence[NDArray[np.integer]], class_name: str, color: tuple[int, int, int]
) -> dict[str, object]:
    """Return an area as a QuPath annotation, a GeoJSON feature.

    ``rings``: (V, 2) x and y in level-0 pixels, not closed, the outline first, then holes. ``key`` decides
    the id.
    """
    return {
        "type": "Feature",
        "id": str(uuid.uuid5(uuid.NAMESPACE_URL, key)),
        "geometry": {
            "type": "Polygon",
            "coordinates": [[*ring.tolist(), ring[0].tolist()] for ring in rings],
        },
        "properties": {
            "objectType": "annotation",
            "name": name,
            "classification": {"name": class_name, "color": list(color)},
        },
    }


def write_geojson(path: Path, features: Sequence[dict[str, object]]) -> None:
    """Write features as a collection, as QuPath reads it."""
    text = json.dumps({"type": "FeatureCollection", "features": list(features)})
    path.write_text(text + "\n", encoding="utf-8")


def nest_annotations(polygons: Sequence[NDArray[np.int32]]) -> list[dict[str, object]]:
    """Nests as annotations, level-0 pixels."""
    return [
        annotation(f"tumour_nests/{i}", f"nest {i + 1}", [polygon], "Tumor", (200, 0, 0))
        for i, polygon in enumerate(polygons)
    ]


def main() -> None:
    """Write ``tumour_nests.svs`` and ``tumour_nests.geojson``."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seed", type=int, default=SEED, help="another seed draws another section")
    parser.add_argument("--quality", type=int, default=80, help="JPEG quality of the slide")
    parser.add_argument("-o", "--out", type=Path, default=Path(__file__).parent, help="folder to write to")
    options = parser.parse_args()
    scene = draw_scene(options.seed, SLIDE_W, SLIDE_H, Stain())
    write_svs(options.out / "tumour_nests.svs", scene.image, options.quality)
    write_geojson(options.out / "tumour_nests.geojson", nest_annotations(scene.polygons))


if __name__ == "__main__":
    main()
