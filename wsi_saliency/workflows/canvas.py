"""The slide at a classifier's resolution: its canvas, and the tissue under a grid; free of torch."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import numpy as np

from wsi_saliency.geometry import Canvas

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from wsi_saliency.geometry import TileGrid
    from wsi_saliency.models.classifier import Classifier
    from wsi_saliency.slides.slide import Slide
    from wsi_saliency.slides.tissue import TissueMask

log = logging.getLogger(__name__)

MAX_ENLARGEMENT = 4  # a 10x slide may be enlarged for a 40x classifier; beyond that there is nothing to see
ASSUMED_MPP = 0.5  # µm; a 20x objective's


def wanted_mpp(classifier: Classifier) -> float:
    """Return the mpp that a classifier wants; 0.5 µm, the usual one, if nobody says, and say so."""
    if classifier.mpp is None:
        log.warning(
            "%s does not say which µm per pixel it was trained at; %g is assumed, --model-mpp says otherwise",
            classifier.uri,
            ASSUMED_MPP,
        )
    return classifier.mpp or ASSUMED_MPP


def canvas_for(slide: Slide, mpp: float) -> Canvas:
    """Resample a slide to a classifier's mpp; a slide far too coarse for it is taken as it is."""
    finest = min(slide.mpp.x, slide.mpp.y)
    if finest <= MAX_ENLARGEMENT * mpp:
        return Canvas.of(slide.size, slide.mpp, mpp)
    log.warning(
        "%s: %.3g µm/px is too coarse for a classifier of %.3g µm/px; patches are read at %.3g µm/px, "
        "and what the classifier says of them means little",
        slide.name,
        finest,
        mpp,
        finest,
    )
    return Canvas.of(slide.size, slide.mpp, finest)


def tissue_shares(grid: TileGrid, tissue: TissueMask) -> NDArray[np.float64]:
    """Share of tissue in each patch of the grid, in its order."""
    x, y, w, h = grid.level0_boxes()
    shares = np.empty((len(y), x.shape[1]))
    for row, row_y in enumerate(y):  # all at once would take forty bytes a patch meanwhile
        shares[row] = tissue.fractions(x[0], row_y, w, h)
    return shares.ravel()
