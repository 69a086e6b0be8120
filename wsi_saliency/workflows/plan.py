"""The plan of a run: which patches of a slide are explained, and where their maps lie."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from wsi_saliency.geometry import Placement, Size, Tile, TileGrid
from wsi_saliency.saliency.drift import DRIFT_PATCHES
from wsi_saliency.slides.blocks import PatchReader
from wsi_saliency.slides.tissue import TissueMask, tissue_mask
from wsi_saliency.workflows.canvas import canvas_for, tissue_shares, wanted_mpp

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from wsi_saliency.saliency.engine import Explainer
    from wsi_saliency.settings import RunSettings
    from wsi_saliency.slides.slide import Slide

NEAR_TISSUE_UM = 20.0  # beyond it, a map holds only what the zero padding at a patch's border has made


@dataclass(frozen=True)
class Plan:
    """What is going to be done with one slide: which patches, and where their maps lie.

    ``tissue_shares`` goes with ``tiles``; ``drift`` is (x, y) in canvas pixels.
    """

    slide: Slide
    explainer: Explainer
    grid: TileGrid
    tissue: TissueMask
    tiles: list[Tile]
    tissue_shares: list[float]
    drift: tuple[float, float] = (0.0, 0.0)

    @property
    def placement(self) -> Placement:
        """Where the heatmap's cells lie on the slide: where the layer has them, less the method's drift."""
        layer, (drift_x, drift_y) = self.explainer.geometry, self.drift
        return Placement.of(
            self.grid.canvas, layer.reduction, layer.centre_x - drift_x, layer.centre_y - drift_y
        )

    def near_tissue(self, cell_y: int, rows: int) -> NDArray[np.bool_]:
        """Tell which cells of some rows of the heatmap, (rows, W), are at most 20 µm from tissue."""
        place, mpp = self.placement, self.slide.mpp
        x, y = place.centre(np.arange(self.cells.w), np.arange(cell_y, cell_y + rows)[:, None])
        w, h = NEAR_TISSUE_UM / mpp.x, NEAR_TISSUE_UM / mpp.y
        return self.tissue.fractions(x - w, y - h, 2 * w, 2 * h) > 0

    @property
    def cells(self) -> Size:
        """Size of the heatmap in cells."""
        layer = self.explainer.geometry
        return self.grid.cell_size(layer.cell_w, layer.cell_h)


def plan_slide(slide: Slide, explainer: Explainer, settings: RunSettings) -> Plan:
    """Lay the tile grid over a slide and pick the tiles with tissue."""
    canvas = canvas_for(slide, wanted_mpp(explainer.classifier))
    layer = explainer.geometry
    grid = TileGrid.over(
        canvas, explainer.classifier.patch, settings.overlap, layer.reduction, layer.total_stride
    )
    tissue = tissue_mask(slide)
    shares = tissue_shares(grid, tissue)
    wanted = np.flatnonzero(shares >= settings.tissue_threshold).tolist()
    tiles = [grid[i] for i in wanted]
    return Plan(slide, explainer, grid, tissue, tiles, [float(shares[i]) for i in wanted])


def with_drift(plan: Plan, workers: int) -> Plan:
    """Measure the method's drift on some of the plan's patches, evenly taken, and place the map by it."""
    if not plan.explainer.may_drift:
        return plan
    sample = plan.tiles[:: -(-len(plan.tiles) // DRIFT_PATCHES) or 1]
    patches = PatchReader(plan.slide, plan.grid, sample, workers).read_all()
    return replace(plan, drift=plan.explainer.drift(patches))
