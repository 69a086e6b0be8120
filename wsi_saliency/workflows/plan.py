"""The plan of a run: which patches of a slide are explained, by which maps, and where these lie."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from wsi_saliency.geometry import Placement, Size, TileGrid, TileSelection
from wsi_saliency.saliency.drift import DRIFT_PATCHES
from wsi_saliency.slides.blocks import PatchReader
from wsi_saliency.workflows.canvas import canvas_for, tissue_shares, wanted_mpp
from wsi_saliency.workflows.first_look import look_at

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from numpy.typing import NDArray

    from wsi_saliency.geometry import Tile
    from wsi_saliency.mapspec import MapSpec
    from wsi_saliency.saliency.engine import Explainer
    from wsi_saliency.settings import RunSettings
    from wsi_saliency.slides.slide import Slide
    from wsi_saliency.slides.tissue import TissueMask
    from wsi_saliency.workflows.first_look import FirstLook

_CELLS = 2**16  # that are looked at together: each takes hundreds of bytes meanwhile
NEAR_TISSUE_UM = 20.0  # beyond it, a map holds only what the zero padding at a patch's border has made


@dataclass(frozen=True)
class Plan:
    """What is going to be done with one slide: which patches, which maps, and where these lie.

    ``tissue_shares`` goes with ``tiles``; ``drifts`` are (x, y) in canvas pixels, 0 for maps that are not
    among them.
    """

    slide: Slide
    explainer: Explainer
    maps: tuple[MapSpec, ...]
    grid: TileGrid
    seen: FirstLook
    tiles: Sequence[Tile]
    tissue_shares: NDArray[np.float64]
    drifts: Mapping[MapSpec, tuple[float, float]] = field(default_factory=dict)

    @property
    def tissue(self) -> TissueMask:
        """Where there is tissue."""
        return self.seen.tissue

    def drift(self, spec: MapSpec) -> tuple[float, float]:
        """How far the method moves a map: (x, y) in canvas pixels."""
        return self.drifts.get(spec, (0.0, 0.0))

    def placement(self, spec: MapSpec) -> Placement:
        """Where a map's cells lie on the slide: where the layer has them, less the method's drift."""
        layer, (drift_x, drift_y) = self.explainer.geometry(spec), self.drift(spec)
        return Placement.of(
            self.grid.canvas, layer.reduction, layer.centre_x - drift_x, layer.centre_y - drift_y
        )

    def near_tissue(self, spec: MapSpec, cell_y: int, rows: int) -> NDArray[np.bool_]:
        """Tell which cells of some rows of a map, (rows, W), are at most 20 µm from tissue."""
        place, mpp, width = self.placement(spec), self.slide.mpp, self.cells(spec).w
        w, h = NEAR_TISSUE_UM / mpp.x, NEAR_TISSUE_UM / mpp.y
        near, step = np.empty((rows, width), bool), max(1, _CELLS // width)
        for top in range(0, rows, step):
            some = np.arange(cell_y + top, cell_y + min(top + step, rows))
            x, y = place.centre(np.arange(width), some[:, None])
            near[top : top + step] = self.tissue.fractions(x - w, y - h, 2 * w, 2 * h) > 0
        return near

    def cells(self, spec: MapSpec) -> Size:
        """Size of a map in cells."""
        layer = self.explainer.geometry(spec)
        return self.grid.cell_size(layer.reduction, layer.cell_w, layer.cell_h)


def plan_slide(
    slide: Slide,
    explainer: Explainer,
    settings: RunSettings,
    there: Mapping[MapSpec, int] | None = None,
    seen: FirstLook | None = None,
) -> Plan:
    """Lay the tile grid over a slide and pick the tiles with tissue.

    Parameters
    ----------
    slide, explainer, settings
        What is explained, and how.
    there
        Maps that are there already, which are not made again, and their layers' reductions. The patches lie
        as they would in a run that makes those and the new ones.
    seen
        The first look at the slide, if it was taken already.
    """
    there = there or {}
    layers = [explainer.geometry(spec) for spec in explainer.maps]
    reduction = math.lcm(*(layer.reduction for layer in layers), *there.values())
    canvas = canvas_for(slide, wanted_mpp(explainer.classifier))
    grid = TileGrid.over(
        canvas, explainer.classifier.patch, settings.overlap, reduction, layers[0].total_stride
    )
    seen = seen or look_at(slide, settings.workers, quality=settings.qc)
    shares = tissue_shares(grid, seen.tissue)
    wanted = np.flatnonzero(shares >= settings.tissue_threshold)
    return Plan(
        slide,
        explainer,
        tuple(spec for spec in explainer.maps if spec not in there),
        grid,
        seen,
        TileSelection(grid, wanted),
        shares[wanted],
    )


def with_drift(plan: Plan, workers: int) -> Plan:
    """Measure the methods' drift on some of the plan's patches, evenly taken, and place the maps by it."""
    drifting: Collection[MapSpec] = set(plan.explainer.may_drift).intersection(plan.maps)
    if not drifting:
        return plan
    sample = plan.tiles[:: -(-len(plan.tiles) // DRIFT_PATCHES) or 1]
    patches = PatchReader(plan.slide, plan.grid, sample, workers).read_all()
    return replace(plan, drifts=plan.explainer.drift(patches))
