"""Sampling patches from the tissue of slides, to train on some and to judge by others.

Patches lie anywhere in tissue, evenly over the slides. Those held out come from a part of each slide that no
other patch touches, the lowest: patches from next door would flatter the scores.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from itertools import groupby
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from tqdm import tqdm

from wsi_saliency.errors import SettingsError, SlideError
from wsi_saliency.geometry import Tile, TileGrid
from wsi_saliency.interruption import reraise_interruption
from wsi_saliency.slides.blocks import PatchReader
from wsi_saliency.slides.opening import open_slide
from wsi_saliency.slides.tissue import tissue_mask
from wsi_saliency.urls import located, name_of, shown
from wsi_saliency.workflows.canvas import canvas_for, wanted_mpp

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from wsi_saliency.models.classifier import Classifier
    from wsi_saliency.settings import CacheSettings, TrainingSettings
    from wsi_saliency.slides.tissue import TissueMask
    from wsi_saliency.urls import Location

    Patches = NDArray[np.uint8]  # (N, P, P, 3), RGB
    Mask = NDArray[np.bool_]

log = logging.getLogger(__name__)

ROUNDS = 8  # so many times the wanted number of patches is looked at for a balanced set
FEW = 0.1  # share of the wanted patches of one side below which there is no balanced set
MEMORY = 4 * 2**30  # bytes of patches; while a balanced set is being sampled, twice that
SCORED, SCORED_MEMORY = 64, 16 * 2**30  # bytes a pixel of patches that are scored: as floats, five times
PLACES = 50_000  # tissue pixels to choose from; more would only cost memory
_BAND = 512  # canvas pixels; patches are read in bands of rows so high, each from left to right


class Sample(NamedTuple):
    """Patches (N, P, P, 3), RGB, to train on, and others, which touch none of them, to score on."""

    trained_on: Patches
    held_out: Patches


@dataclass(frozen=True)
class Balance:
    """Half of the patches shall be ``positive``, (N, P, P, 3) → (N,) bool; ``name`` is for messages."""

    name: str
    positive: Callable[[Patches], Mask]


@dataclass(frozen=True)
class Area:
    """A part of a slide from which patches are taken: tissue between two limits.

    Parameters
    ----------
    canvas_x, canvas_y
        Upper left corners (n,) of the patches that are centred on pixels of the tissue mask.
    canvas_step
        Width and height of such a pixel.
    canvas_low, canvas_high
        First and last corner (x, y) that a patch may have.
    """

    canvas_x: NDArray[np.floating[Any]]
    canvas_y: NDArray[np.floating[Any]]
    canvas_step: tuple[float, float]
    canvas_low: tuple[int, int]
    canvas_high: tuple[int, int]

    def draw(self, n: int, rng: np.random.Generator) -> list[Tile]:
        """Draw patches centred on tissue, in an order in which they are quickly read."""
        chosen = rng.integers(len(self.canvas_x), size=n)
        corners = np.stack([self.canvas_x[chosen], self.canvas_y[chosen]], axis=1)
        corners += rng.uniform(-0.5, 0.5, corners.shape) * np.array(self.canvas_step)
        corners = np.clip(np.rint(corners), self.canvas_low, self.canvas_high).astype(int)
        by_bands = np.lexsort((corners[:, 0], corners[:, 1] // _BAND))
        return [Tile(0, 0, x, y) for x, y in corners[by_bands].tolist()]


def areas(
    tissue: TissueMask, grid: TileGrid, held_out: float, rng: np.random.Generator
) -> tuple[Area | None, Area | None]:
    """Divide a slide's tissue into an upper part to train on and a lower one to hold out.

    No patch of one overlaps one of the other. Where the tissue is too small for that, nothing is held out;
    where there is none, both are None.
    """
    rows, columns = np.nonzero(tissue.mask)
    if len(rows) > PLACES:
        some = np.sort(rng.choice(len(rows), PLACES, replace=False))
        rows, columns = rows[some], columns[some]
    if not len(rows):
        return None, None
    canvas, side = grid.canvas, grid.patch
    step = tissue.pixel_w / canvas.scale_x, tissue.pixel_h / canvas.scale_y
    end = max(0, canvas.w - side), max(0, canvas.h - side)
    x = np.clip((columns + 0.5) * step[0] - side / 2, 0, end[0])
    y = np.clip((rows + 0.5) * step[1] - side / 2, 0, end[1])
    border = round(float(np.quantile(y, 1 - held_out)))
    above, below = y <= border - side, y >= border
    if not held_out or not above.any():
        return Area(x, y, step, (0, 0), end), None
    return (
        Area(x[above], y[above], step, (0, 0), (end[0], border - side)),
        Area(x[below], y[below], step, (0, border), end),
    )


@dataclass(frozen=True)
class _Source:
    """A slide to take patches from."""

    path: Location
    grid: TileGrid
    trained_on: Area | None
    held_out: Area | None

    @classmethod
    def of(
        cls,
        path: Location,
        classifier: Classifier,
        mpp: float | None,
        rng: np.random.Generator,
        held_out: float = 0.0,
        cache: CacheSettings | None = None,
    ) -> _Source:
        with open_slide(path, mpp, cache=cache) as slide:
            for warning in slide.warnings:
                log.warning("%s: %s", slide.name, warning)
            # patches may lie anywhere: a grid of single pixels
            grid = TileGrid(
                canvas_for(slide, wanted_mpp(classifier)), classifier.patch, stride=1, reduction=1
            )
            upper, lower = areas(tissue_mask(slide), grid, held_out, rng)
        if upper is None:
            log.warning("%s: no tissue found; no patches are taken from it", name_of(path))
        return cls(path, grid, upper, lower)


def sample_patches(
    slides: Sequence[Location | str],
    classifier: Classifier,
    settings: TrainingSettings,
    balance: Balance | None = None,
    *,
    progress: bool = False,
) -> Sample:
    """Sample ``settings.patches`` patches from the tissue of slides, held-out ones included.

    For a balanced set, up to eight times as many are looked at; where one side remains short, the other is
    cut to its size. Never more than twice ``settings.patches`` are in memory.

    Raises
    ------
    SlideError
        If a slide cannot be read, or none has tissue.
    SettingsError
        If the set cannot be balanced, for one side has less than a tenth of what it should have, or the
        patches do not fit into memory.
    """
    rng = np.random.default_rng(settings.seed)
    check_memory(settings.patches, classifier.patch)
    sources = [
        _Source.of(located(place), classifier, settings.mpp, rng, settings.held_out, settings)
        for place in slides
    ]
    upper = [(source, source.trained_on) for source in sources if source.trained_on]
    lower = [(source, source.held_out) for source in sources if source.held_out]
    if not upper:
        raise _no_tissue(slides)
    if settings.held_out and not lower:
        log.warning("too little tissue to hold a part of it out; the surrogate is not scored")
    n_lower = round(settings.patches * settings.held_out) if lower else 0
    with tqdm(desc="sampling", unit="patch", disable=None if progress else True) as bar:
        sampler = _Sampler(classifier.patch, settings.mpp, settings.workers, rng, bar, settings)
        if balance is None:
            return Sample(sampler.take(upper, settings.patches - n_lower), sampler.take(lower, n_lower))
        sides = sampler.take_sides(upper, settings.patches - n_lower, balance)
        return Sample(_even(sides, balance), np.concatenate(sampler.take_sides(lower, n_lower, balance)[:2]))


class PatchSample(NamedTuple):
    """Patches (N, P, P, 3), RGB, and where each is from: its slide, and its level-0 ``x, y, w, h``.

    ``grids`` and ``tiles`` say the same on the canvas of each slide, in grids of single pixels.
    """

    patches: Patches
    slides: list[Location]
    boxes: list[tuple[int, int, int, int]]
    grids: list[TileGrid]
    tiles: list[Tile]


class Margins(NamedTuple):
    """Patches with what is around them, (N, P + m, P + m, 3), RGB.

    ``corners``: (N, 2) whole pixels (x, y) at which each patch begins in its picture, 0 to m;
    ``inside``: (N,) bool, whether the picture lies wholly on the slide.
    """

    pictures: Patches
    corners: NDArray[np.int64]
    inside: Mask


def sample_located(
    slides: Sequence[Location | str],
    classifier: Classifier,
    n: int,
    wanted: Callable[[Patches], Mask] | None = None,
    *,
    seed: int = 0,
    mpp: float | None = None,
    workers: int = 4,
    progress: bool = False,
    cache: CacheSettings | None = None,
) -> PatchSample:
    """Sample ``n`` patches from the tissue of slides, evenly, and say where they are from.

    Parameters
    ----------
    slides, classifier
        Where from and for whom.
    n
        How many.
    wanted
        Takes patches (m, P, P, 3) and tells which of them count, (m,); up to eight times ``n`` are looked at.
    seed, mpp, workers
        Of the draw; µm per level-0 pixel, in place of what the slides say; threads that read.
    progress
        Show a bar, where there is a terminal.
    cache
        Settings that name the cache of slides from URLs.

    Raises
    ------
    SlideError
        If a slide cannot be read, or none has tissue.
    SettingsError
        If none of the patches that were looked at is wanted, or ``n`` of them do not fit into memory.
    """
    check_memory(n, classifier.patch, SCORED, SCORED_MEMORY)
    rng = np.random.default_rng(seed)
    sources = [_Source.of(located(path), classifier, mpp, rng, cache=cache) for path in slides]
    places = [(source, source.trained_on) for source in sources if source.trained_on]
    if not places:
        raise _no_tissue(slides)
    kept: list[tuple[NDArray[np.uint8], _Source, Tile]] = []
    with tqdm(desc="sampling", unit="patch", disable=None if progress else True) as bar:
        sampler = _Sampler(classifier.patch, mpp, workers, rng, bar, cache)
        for _ in range(ROUNDS if wanted else 1):
            patches, origins = sampler.take_located(places, n)
            chosen = np.flatnonzero(wanted(patches)) if wanted else np.arange(n)
            # in any order of slides, so that none is preferred when there are enough
            kept += [(patches[i].copy(), *origins[i]) for i in rng.permutation(chosen)]
            if len(kept) >= n:
                break
    if not kept:
        raise SettingsError(
            f"none of {ROUNDS * n} patches of tissue is predicted positive; leave --predicted-positive out, "
            "or choose another --target or other slides"
        )
    if len(kept) < n:
        log.warning("only %d of %d wanted patches found among %d", len(kept), n, ROUNDS * n)
    kept = sorted(kept[:n], key=lambda one: [source is one[1] for source in sources].index(True))
    return PatchSample(
        np.stack([patch for patch, *_ in kept]),
        [source.path for _, source, _ in kept],
        [source.grid.level0_box(tile) for _, source, tile in kept],
        [source.grid for _, source, _ in kept],
        [tile for *_, tile in kept],
    )


def with_margins(
    sample: PatchSample,
    margin: int,
    *,
    mpp: float | None = None,
    workers: int = 4,
    cache: CacheSettings | None = None,
) -> Margins:
    """Read patches again, with ``margin`` canvas pixels more along each axis: to the right and below.

    At the slide's end the picture is moved back on the slide, as far as that goes.

    Raises
    ------
    SlideError
        If a slide cannot be read.
    """
    grids = [replace(grid, patch=grid.patch + margin) for grid in sample.grids]
    tiles = [_moved_back(tile, grid) for tile, grid in zip(sample.tiles, grids, strict=True)]
    pictures: list[NDArray[np.uint8]] = []
    for path, of_slide in groupby(zip(sample.slides, grids, tiles, strict=True), key=lambda one: one[0]):
        wanted = list(of_slide)  # patches come slide by slide
        with open_slide(path, mpp, cache=cache) as slide:
            pictures += PatchReader(slide, wanted[0][1], [tile for *_, tile in wanted], workers)
    corners = [
        (patch.canvas_x - picture.canvas_x, patch.canvas_y - picture.canvas_y)
        for patch, picture in zip(sample.tiles, tiles, strict=True)
    ]
    inside = [grid.patch <= min(grid.canvas.w, grid.canvas.h) for grid in grids]
    return Margins(np.stack(pictures), np.array(corners), np.array(inside))


def _moved_back(tile: Tile, grid: TileGrid) -> Tile:
    """Move a tile back on the canvas where it reaches beyond it."""
    last_x, last_y = (max(0, length - grid.patch) for length in (grid.canvas.w, grid.canvas.h))
    return Tile(0, 0, min(tile.canvas_x, last_x), min(tile.canvas_y, last_y))


def check_memory(patches: int, side: int, bytes_a_pixel: int = 3, memory: int = MEMORY) -> None:
    """Make sure that so many patches fit into memory.

    Raises
    ------
    SettingsError
        If they take more than ``memory`` bytes.
    """
    most = memory // (side * side * bytes_a_pixel)
    if patches > most:
        raise SettingsError(
            f"{patches} patches of {side} px take more than {memory / 2**30:g} GiB of memory; "
            f"choose --patches {most} or fewer"
        )


def _no_tissue(slides: Sequence[Location | str]) -> SlideError:
    return SlideError(f"{', '.join(map(shown, slides))}: no tissue found; name slides with tissue")


class _Sides(NamedTuple):
    """Patches on either side of a balance, how many were wanted of each, and how many were looked at."""

    yes: Patches
    no: Patches
    wanted: int
    seen: int


def _even(sides: _Sides, balance: Balance) -> Patches:
    """Cut the larger side to the size of the smaller."""
    n = min(len(sides.yes), len(sides.no))
    if n < sides.wanted:
        side = "predicted" if len(sides.yes) == n else "not predicted"
        found = f"only {n} of {sides.wanted} wanted patches are {side} {balance.name} among {sides.seen}"
        if n < max(1, FEW * sides.wanted):
            raise SettingsError(f"{found}; add slides that have them, or train without --balance")
        log.warning("%s; training on %d of each", found, n)
    return np.concatenate([sides.yes[:n], sides.no[:n]])


@dataclass(frozen=True)
class _Sampler:
    """Takes patches from the areas of slides, evenly."""

    side: int
    mpp: float | None
    workers: int
    rng: np.random.Generator
    bar: tqdm[None]
    cache: CacheSettings | None = None

    def take(self, places: Sequence[tuple[_Source, Area]], n: int) -> Patches:
        return self.take_located(places, n)[0]

    def take_located(
        self, places: Sequence[tuple[_Source, Area]], n: int
    ) -> tuple[Patches, list[tuple[_Source, Tile]]]:
        """Take ``n`` patches (n, P, P, 3), and say where each is from."""
        patches = np.empty((n, self.side, self.side, 3), np.uint8)
        origins: list[tuple[_Source, Tile]] = []
        for i, (source, area) in enumerate(places):
            tiles = area.draw((n - len(origins)) // (len(places) - i), self.rng)
            with open_slide(source.path, self.mpp, cache=self.cache) as slide:
                for tile, patch in zip(
                    tiles, PatchReader(slide, source.grid, tiles, self.workers), strict=True
                ):
                    patches[len(origins)] = patch
                    origins.append((source, tile))
                    self.bar.update()
                    reraise_interruption()  # of a signal whose exception was lost in a library's callback
        return patches, origins

    def take_sides(self, places: Sequence[tuple[_Source, Area]], n: int, balance: Balance) -> _Sides:
        """Look at rounds of ``n`` patches until each side has half as many."""
        half, rounds = n // 2, 0
        sides = [np.empty((0, self.side, self.side, 3), np.uint8) for _ in range(2)]
        while rounds < ROUNDS and min(map(len, sides)) < half:
            patches = self.take(places, n)[self.rng.permutation(n)]  # so that no slide is preferred
            positive = balance.positive(patches)
            for i, chosen in enumerate((positive, ~positive)):
                sides[i] = np.concatenate([sides[i], patches[chosen][: half - len(sides[i])]])
            rounds += 1
        return _Sides(sides[0], sides[1], half, rounds * n)
