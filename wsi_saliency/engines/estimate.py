"""What a run would do, about how long and how large; the classifier is loaded only if need be."""

from __future__ import annotations

from dataclasses import dataclass, fields
from itertools import repeat
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from wsi_saliency.engines.kept import KeptResults
from wsi_saliency.errors import SlideError
from wsi_saliency.geometry import TileGrid
from wsi_saliency.heatmap.result import asked_maps
from wsi_saliency.heatmap.shelves import shelved
from wsi_saliency.settings import DEFAULT_LAYER, InspectSettings
from wsi_saliency.slides.cache import SlideCache
from wsi_saliency.slides.opening import open_slide
from wsi_saliency.slides.store import parts_of
from wsi_saliency.slides.tissue import tissue_mask
from wsi_saliency.workflows.canvas import canvas_for, tissue_shares
from wsi_saliency.workflows.describe_slide import grid_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from wsi_saliency.heatmap.result import Result
    from wsi_saliency.heatmap.shelf import Shelf
    from wsi_saliency.settings import RunSettings
    from wsi_saliency.urls import Location
    from wsi_saliency.workflows.jobs import Job

_REDUCTIONS = {"input": 1, "last": 32}  # of layers that are not named by their reduction
_CELL_BYTES = 2 * 4 * 4 / 3  # float32, in two files, with a pyramid; what is empty takes no room
_PICTURE_BYTES = 3_000_000  # of each map: its overview and its share of the page, however large the slide is
_MEASURED = 20  # results whose time and size are looked at


@dataclass(frozen=True)
class Estimate:
    """What a run would do with a slide.

    Parameters
    ----------
    job
        The slide.
    kept
        Its complete result, if that would stay as it is.
    size
        How many bytes that takes, if it was looked at.
    patches, maps, cells
        How many patches would be explained, to how many maps, and how many cells of these would have a value.
    to_fetch
        Bytes that have to come from a URL first; patches are not known before they are here.
    failure
        Why it would fail, in one line.
    """

    job: Job
    kept: Result | None = None
    size: int | None = None
    patches: int = 0
    maps: int = 0
    cells: float = 0.0
    to_fetch: int | None = None
    failure: str | None = None

    @property
    def unmeasured_size(self) -> float:
        """About how many bytes the result would take, where there is none to compare it with."""
        return self.cells * _CELL_BYTES + self.maps * _PICTURE_BYTES


@dataclass(frozen=True)
class Total:
    """What a run would do in all.

    Parameters
    ----------
    slides, kept, failed
        How many slides there are, how many have complete results, and how many cannot be read.
    patches
        How many would be explained.
    seconds
        How long that may take, from results that are there; None if there are none.
    size
        About how many bytes the results may take, from results that are there if there are any.
    unseen, to_fetch
        How many slides are at URLs only, and are in none of the numbers before; and their bytes.
    """

    slides: int
    kept: int
    failed: int
    patches: int
    seconds: float | None
    size: float
    unseen: int = 0
    to_fetch: int = 0

    @classmethod
    def of(cls, estimates: Sequence[Estimate]) -> Total:
        """Sum up estimates."""
        patches = sum(estimate.patches for estimate in estimates)
        there = [estimate for estimate in estimates if estimate.kept]
        a_patch = _measured(there)
        unseen = [estimate.to_fetch for estimate in estimates if estimate.to_fetch is not None]
        return cls(
            len(estimates),
            len(there),
            sum(estimate.failure is not None for estimate in estimates),
            patches,
            patches * a_patch[0] if a_patch else None,
            patches * a_patch[1] if a_patch else sum(estimate.unmeasured_size for estimate in estimates),
            len(unseen),
            sum(unseen),
        )


def estimates(
    jobs: Sequence[Job], out: Path | Shelf, settings: RunSettings, *, overwrite: bool = False
) -> Iterator[Estimate]:
    """Look at slides and at their results, and yield what a run would do with each.

    A slide at a URL is looked at if it is in the cache; it is not brought there.

    Raises
    ------
    ModelError, OutputError
        If the classifier's patches are not known without it, and it cannot be loaded; or it cannot be found
        out what is there.
    """
    shared = {field.name: getattr(settings, field.name) for field in fields(InspectSettings)}
    patches_of = None
    shelf, measured = shelved(out), 0
    found = repeat(None) if overwrite else KeptResults(shelf, settings).outcomes(jobs)
    for job, kept in zip(jobs, found, strict=False):
        if kept and kept.result:
            looked_at = measured < _MEASURED and kept.result.is_current
            measured += looked_at
            yield Estimate(job, kept.result, shelf.size(job.name) if looked_at else None)
            continue
        patches_of = patches_of or grid_of(InspectSettings(**shared))[:3]
        try:
            if (to_fetch := _to_fetch(job.slide, settings)) is not None:
                yield Estimate(job, to_fetch=to_fetch)
                continue
            yield _estimate(job, job.settings(settings), *patches_of)
        except SlideError as error:
            yield Estimate(job, failure=str(error))


def _to_fetch(slide: Location, settings: RunSettings) -> int | None:
    """Return how many bytes of a slide are elsewhere; None if it is here."""
    if isinstance(slide, Path):
        return None
    parts = parts_of(slide)
    if SlideCache.of(settings).has(slide, parts):
        return None
    return sum(part.facts.size or 0 for part in parts)


def _estimate(job: Job, settings: RunSettings, patch: int, mpp: float, total_stride: int) -> Estimate:
    reductions = [_reduction(layer) for layer, _, _ in asked_maps(settings)]
    with open_slide(job.slide, settings.mpp, cache=settings) as slide:
        canvas = canvas_for(slide, mpp)
        reduction = int(np.lcm.reduce(reductions))
        grid = TileGrid.over(canvas, patch, settings.overlap, reduction, total_stride)
        wanted = int((tissue_shares(grid, tissue_mask(slide)) >= settings.tissue_threshold).sum())
    channels = max(1, len(settings.targets))
    cells = sum(wanted * channels * (grid.stride / r) ** 2 for r in reductions)
    return Estimate(job, patches=wanted, maps=len(reductions), cells=cells)


def _reduction(layer: str) -> int:
    """Guess how many canvas pixels a cell of a layer has; a name does not say it."""
    return int(layer) if layer.isdigit() and int(layer) else _REDUCTIONS.get(layer, int(DEFAULT_LAYER))


def _measured(kept: Sequence[Estimate]) -> tuple[float, float] | None:
    """Return seconds and bytes for a patch, from results that are there; None if they have no patches."""
    measured = [e for e in kept if e.size is not None]
    records = [e.kept.record for e in measured if e.kept]
    patches = sum(record["patches"]["tissue"] for record in records)
    if not patches:
        return None
    seconds = sum(record["seconds"]["total"] for record in records)
    return seconds / patches, sum(e.size or 0 for e in measured) / patches
