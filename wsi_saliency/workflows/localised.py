"""How well the maps of a whole slide find what is drawn on it."""

from __future__ import annotations

import logging
from dataclasses import fields
from functools import partial
from pathlib import PurePath
from typing import TYPE_CHECKING

import numpy as np

from wsi_saliency.errors import SettingsError
from wsi_saliency.evaluation.annotation_files import annotations_for, read_annotations
from wsi_saliency.evaluation.localisation import localise, patch_probability_map
from wsi_saliency.evaluation.maps import kind_of
from wsi_saliency.evaluation.measured import Localisation
from wsi_saliency.settings import RunSettings
from wsi_saliency.slides.opening import open_slide
from wsi_saliency.slides.tissue import tissue_mask
from wsi_saliency.urls import name_of, shown
from wsi_saliency.workflows.explain import explain_slide

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from numpy.typing import NDArray

    from wsi_saliency.evaluation.annotations import Annotations
    from wsi_saliency.geometry import Placement
    from wsi_saliency.heatmap.result import Result
    from wsi_saliency.settings import EvaluationSettings
    from wsi_saliency.urls import Location
    from wsi_saliency.workflows.evaluated import EvaluatedClassifier

log = logging.getLogger(__name__)

_OF_RUNS = {f.name for f in fields(RunSettings)}
_TISSUE = 0.5  # share of a cell from which on it counts as tissue


def annotations_on(slides: Iterable[Location], settings: EvaluationSettings) -> dict[Location, Annotations]:
    """Read what is drawn on slides, and make sure that it is on them; empty if nothing was named.

    Raises
    ------
    SettingsError
        If annotations cannot be read, do not lie on their slide, or are those of two slides.
    """
    if settings.annotations is None:
        return {}
    files: dict[Path, Location] = {}  # and their slides
    for slide in slides:
        file = annotations_for(PurePath(name_of(slide)), settings.annotations)
        if other := files.get(file):
            raise SettingsError(
                f"{file}: cannot be of both {shown(other)} and {shown(slide)}; --annotations takes the "
                "file of one slide, or a folder with a file of each slide's name"
            )
        files[file] = slide
    return {slide: _drawn_on(slide, file, settings) for file, slide in files.items()}


def _drawn_on(slide: Location, file: Path, settings: EvaluationSettings) -> Annotations:
    drawn = read_annotations(file).only(settings.annotation_classes).scaled(settings.annotation_scale)
    with open_slide(slide, settings.mpp, cache=settings) as opened:
        drawn.check_on(opened.size)
    return drawn


def localised_on(
    evaluated: EvaluatedClassifier,
    path: Location,
    name: str,
    drawn: Annotations,
    maps: Path,
    *,
    progress: bool,
) -> Iterator[Localisation]:
    """Compare the slide's maps, and the classifier's own patch probabilities, with what is drawn on it.

    Parameters
    ----------
    evaluated
        The classifier and its maps; those at the main layer are compared.
    path, name
        The slide, and what it is called in the report.
    drawn
        Its annotations.
    maps
        Folder of its maps; those that are there already are taken.
    progress
        Show a bar, where there is a terminal.
    """
    result = _slide_maps(evaluated, path, maps, progress=progress)
    for i, spec in enumerate(evaluated.main):
        heatmap = result.heatmap(spec)
        place, values = heatmap.info.placement, heatmap.read(0)
        height, width = values.shape
        lattice = width, height, place.x0, place.y0, place.fx, place.fy
        positive, inside = drawn.mask(*lattice), _in_tissue(path, evaluated.settings, place, width, height)
        if not positive[inside].any():
            log.warning("%s: none of its areas lies in tissue of %s", drawn.path, name_of(path))
        if i == 0:
            boxes, p = result.tile_probabilities(evaluated.target_name)
            scores = localise(patch_probability_map(boxes, p, *lattice), positive, inside)
            yield Localisation(name, None, *scores)
        found = localise(values, positive, inside)
        yield Localisation(name, kind_of(evaluated.network, spec), *found)


def _in_tissue(
    path: Location, settings: EvaluationSettings, place: Placement, width: int, height: int
) -> NDArray[np.bool_]:
    """Tell which cells (height, width) of a slide's map are tissue."""
    with open_slide(path, settings.mpp, cache=settings) as slide:
        tissue = tissue_mask(slide)
    x, y = place.centre(np.arange(width), np.arange(height)[:, None])
    return tissue.fractions(x - place.fx / 2, y - place.fy / 2, place.fx, place.fy) > _TISSUE


def _slide_maps(evaluated: EvaluatedClassifier, path: Location, folder: Path, *, progress: bool) -> Result:
    """Make the main maps of a whole slide, or take what an evaluation with the same settings has left."""
    settings, main = evaluated.settings, evaluated.main
    shared = {name: value for name, value in vars(settings).items() if name in _OF_RUNS}
    of_maps = {
        "layers": tuple(dict.fromkeys(spec.layer for spec in main)),
        "methods": tuple(dict.fromkeys(spec.method for spec in main)),
        "attributions": tuple(dict.fromkeys(spec.attribution for spec in main)),
        "targets": () if settings.target is None else (settings.target,),
    }
    explainer = evaluated.explainer_of(main)
    explain = partial(
        explain_slide,
        path,
        folder,
        RunSettings(**shared | of_maps),
        explainer=explainer,
        progress=progress,
    )
    result = explain()
    if result.differences:
        result = explain(overwrite=True)
    evaluated.batch.size = explainer.batch  # what did not fit here does not fit in the next slide
    return result
