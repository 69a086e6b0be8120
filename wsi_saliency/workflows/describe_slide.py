"""What a slide is, as lines of text for ``inspect``; free of torch, unless a classifier is asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from wsi_saliency.geometry import TileGrid
from wsi_saliency.settings import DEFAULT_LAYER, DEFAULT_MODEL
from wsi_saliency.slides.opening import open_slide
from wsi_saliency.slides.tissue import tissue_mask
from wsi_saliency.urls import name_of
from wsi_saliency.workflows.canvas import canvas_for, tissue_shares
from wsi_saliency.workflows.progress import bar, download

if TYPE_CHECKING:
    from wsi_saliency.settings import InspectSettings
    from wsi_saliency.slides.slide import Slide
    from wsi_saliency.urls import Location
    from wsi_saliency.workflows.facts import Lines

_DEFAULT_GRID = (224, 0.25, 32)  # patch px, mpp and total stride of camelyon16, known without its weights


def describe_slide(path: Location | str, settings: InspectSettings) -> Lines:
    """Describe a slide, with the patches that a run would use on it.

    Parameters
    ----------
    path
        The slide, a file or a URL.
    settings
        Those of the run. The default classifier is not loaded: its patch size and mpp are known.

    Raises
    ------
    SlideError, ModelError
        If the slide cannot be read or the classifier not be had.
    """
    watch = download(bar, name_of(path))
    with open_slide(path, settings.mpp, mpp_required=False, cache=settings, watch=watch) as slide:
        lines = _slide_lines(slide)
        tissue = tissue_mask(slide)
        share = f"{tissue.mask.mean():.1%} of the slide"
        if slide.stated_mpp is None:
            return [*lines, ("tissue", share), ("patches", "unknown without the slide's mpp; give --mpp")]
        lines.append(("tissue", f"{tissue.area_mm2(slide.mpp):.2f} mm², {share}"))
        patch, mpp, stride, of = grid_of(settings)
        canvas = canvas_for(slide, mpp)
        grid = TileGrid.over(canvas, patch, settings.overlap, int(DEFAULT_LAYER), stride)
        used = int((tissue_shares(grid, tissue) >= settings.tissue_threshold).sum())
        mpp = canvas.scale_x * slide.mpp.x
    text = f"{used} of {len(grid)} ({patch} px at {mpp:g} µm/px, overlap {settings.overlap:g}; {of})"
    return [*lines, ("patches", text)]


def grid_of(settings: InspectSettings) -> tuple[int, float, int, str]:
    """Patch side, mpp, total stride and whose they are."""
    patch, mpp, stride = _DEFAULT_GRID
    if settings.model != DEFAULT_MODEL or (settings.weights, settings.sha256) != (None, None):
        # Imported here because it needs torch, whose import takes seconds.
        from wsi_saliency.workflows.describe_model import patch_mpp_stride

        patch, mpp, stride = patch_mpp_stride(settings)
    return settings.patch or patch, settings.model_mpp or mpp, stride, f"classifier {settings.model}"


def _slide_lines(slide: Slide) -> Lines:
    power = f"{slide.objective_power:g}×" if slide.objective_power else "not stated"
    mpp = (
        f"{slide.mpp.x:.6g} × {slide.mpp.y:.6g} µm/px ({slide.mpp_source})"
        if slide.stated_mpp
        else "not stated"
    )
    levels = ", ".join(f"{level.size.w}×{level.size.h} (1/{level.downsample_x:g})" for level in slide.levels)
    return [
        ("file", slide.shown),
        ("format", slide.format),
        ("size", f"{slide.size.w} × {slide.size.h} px"),
        ("levels", f"{len(slide.levels)}: {levels}"),
        ("mpp", mpp),
        ("objective", power),
        *(("warning", warning) for warning in slide.warnings),
    ]
