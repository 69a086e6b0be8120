"""The first look at a slide: its tissue and its thumbnail, both from one reading; free of torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from wsi_saliency.heatmap.overview import thumbnail_size
from wsi_saliency.slides.quality import Artefacts, artefacts_of
from wsi_saliency.slides.tissue import TissueMask, mask_of, mask_size
from wsi_saliency.slides.whole import read_whole
from wsi_saliency.workflows.memory import give_back

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from wsi_saliency.slides.slide import Slide
    from wsi_saliency.slides.whole import Watch


@dataclass(frozen=True, eq=False)
class FirstLook:
    """What a slide shows from afar.

    Parameters
    ----------
    tissue
        Where there is tissue.
    thumbnail
        The whole slide as the overview shows it, (h, w, 3) uint8 RGB.
    artefacts
        Where there are pen and folds; None if nobody asked.
    """

    tissue: TissueMask
    thumbnail: NDArray[np.uint8]
    artefacts: Artefacts | None = None


def look_at(slide: Slide, threads: int, watch: Watch | None = None, *, quality: bool = False) -> FirstLook:
    """Read the whole slide once; ``threads`` and ``watch`` are those of `read_whole`.

    ``quality`` asks for artefacts, too.

    Raises
    ------
    SlideError
        If the slide cannot be read.
    """
    sizes = [mask_size(slide), thumbnail_size(slide.size)]
    picture, thumbnail = read_whole(slide, sizes, threads, watch)
    artefacts = artefacts_of(slide, picture) if quality else None
    seen = FirstLook(mask_of(slide, picture), thumbnail, artefacts)
    give_back()
    return seen
