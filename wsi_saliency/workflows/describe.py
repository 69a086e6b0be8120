"""What a slide is and what a classifier is, as lines of text for ``inspect`` and ``check-model``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from wsi_saliency.errors import ModelError
from wsi_saliency.geometry import TileGrid
from wsi_saliency.models.loading import load_classifier
from wsi_saliency.saliency.cancellation import vanishing
from wsi_saliency.saliency.engine import eval_mode
from wsi_saliency.saliency.layers import (
    INPUT,
    explainable_stages,
    measure,
    note_on_other_stages,
    strided_convolutions,
    total_stride,
)
from wsi_saliency.saliency.reach import Reach
from wsi_saliency.saliency.smoothing import SMOOTHING
from wsi_saliency.settings import DEFAULT_LAYER, METHODS, RunSettings
from wsi_saliency.slides.slide import Slide, open_slide
from wsi_saliency.slides.tissue import tissue_mask
from wsi_saliency.workflows.canvas import ASSUMED_MPP, canvas_for, tissue_shares, wanted_mpp

if TYPE_CHECKING:
    from pathlib import Path

    from wsi_saliency.models.classifier import Classifier
    from wsi_saliency.saliency.layers import LayerGeometry

Lines = list[tuple[str, str]]

_DEFAULT_GRID = (224, 0.25, 32)  # patch px, mpp and total stride of camelyon16, known without its weights


def describe_slide(path: Path, settings: RunSettings, model: str | None = None) -> Lines:
    """Describe a slide, with the patches that a run would use on it.

    Parameters
    ----------
    path
        The slide.
    settings
        Those of the run; ``mpp``, ``overlap``, ``patch``, ``model_mpp`` and ``tissue_threshold`` count.
    model
        Classifier that gives patch size and mpp; None takes those of the default classifier.

    Raises
    ------
    SlideError, ModelError
        If the slide cannot be read or the classifier not be had.
    """
    with open_slide(path, settings.mpp, mpp_required=False) as slide:
        lines = _slide_lines(slide)
        tissue = tissue_mask(slide)
        share = f"{tissue.mask.mean():.1%} of the slide"
        if slide.stated_mpp is None:
            return [*lines, ("tissue", share), ("patches", "unknown without the slide's mpp; give --mpp")]
        lines.append(("tissue", f"{tissue.area_mm2(slide.mpp):.2f} mm², {share}"))
        patch, mpp, stride, of = _grid_of(settings, model)
        canvas = canvas_for(slide, mpp)
        grid = TileGrid.over(canvas, patch, settings.overlap, int(DEFAULT_LAYER), stride)
        used = int((tissue_shares(grid, tissue) >= settings.tissue_threshold).sum())
        mpp = canvas.scale_x * slide.mpp.x
    text = f"{used} of {len(grid)} ({patch} px at {mpp:g} µm/px, overlap {settings.overlap:g}; {of})"
    return [*lines, ("patches", text)]


def _grid_of(settings: RunSettings, model: str | None) -> tuple[int, float, int, str]:
    """Patch side, mpp, total stride and whose they are."""
    patch, mpp, stride, name = *_DEFAULT_GRID, settings.model
    if model:
        classifier = load_classifier(model, settings.weights, mpp=settings.model_mpp, patch=settings.patch)
        patch, mpp, name = classifier.patch, wanted_mpp(classifier), model
        with eval_mode(classifier.module):
            stride = total_stride(classifier.module, torch.zeros(1, 3, patch, patch))
    return settings.patch or patch, settings.model_mpp or mpp, stride, f"classifier {name}"


def _slide_lines(slide: Slide) -> Lines:
    power = f"{slide.objective_power:g}×" if slide.objective_power else "not stated"
    mpp = (
        f"{slide.mpp.x:.6g} × {slide.mpp.y:.6g} µm/px ({slide.mpp_source})"
        if slide.stated_mpp
        else "not stated"
    )
    levels = ", ".join(f"{level.size.w}×{level.size.h} (1/{level.downsample_x:g})" for level in slide.levels)
    return [
        ("file", str(slide.path)),
        ("format", slide.format),
        ("size", f"{slide.size.w} × {slide.size.h} px"),
        ("levels", f"{len(slide.levels)}: {levels}"),
        ("mpp", mpp),
        ("objective", power),
        *(("warning", warning) for warning in slide.warnings),
    ]


def describe_model(uri: str, settings: RunSettings) -> Lines:
    """Describe a classifier: what it wants, what it says, and the layers that can be explained.

    Raises
    ------
    ModelError
        If the classifier cannot be had, or does not give logits.
    """
    c = load_classifier(uri, settings.weights, mpp=settings.model_mpp, patch=settings.patch)
    parameters = sum(p.numel() for p in c.module.parameters())
    return [
        ("model", uri),
        ("architecture", f"{c.architecture}, {parameters / 1e6:.2f} M parameters"),
        ("input", f"{c.patch} × {c.patch} px"),
        (
            "mpp",
            f"{c.mpp:g} µm/px" if c.mpp else f"not stated; {ASSUMED_MPP} µm/px is assumed (--model-mpp)",
        ),
        ("normalisation", f"(pixel / 255 − {_listed(c.mean)}) / {_listed(c.std)}"),
        ("classes", _classes(c)),
        (
            "output",
            "one logit, sigmoid" if c.output == "sigmoid" else f"{len(c.class_names)} logits, softmax",
        ),
        ("target", _default_target(c)),
        ("sha256", c.sha256),
        *_strided_lines(c),
        *_layer_lines(c),
        *(("note", note) for note in c.notes),
    ]


def _classes(classifier: Classifier) -> str:
    if not classifier.named:
        return f"not named ({_counted(len(classifier.class_names), 'logit')})"
    return ", ".join(f"{i}: {name}" for i, name in enumerate(classifier.class_names))


def _default_target(classifier: Classifier) -> str:
    try:
        index = classifier.target_index(None)
    except ModelError:
        return f"a run needs --target, a class's {'name or index' if classifier.named else 'index'}"
    return f"{classifier.class_names[index] if classifier.named else 'the logit'} (default)"


def _strided_lines(classifier: Classifier) -> Lines:
    found = strided_convolutions(classifier.module)
    names = [f"{name} ({'×'.join(map(str, c.kernel_size))}/{max(c.stride)})" for name, c in found.items()]
    if not names:
        return [("strided", "no strided convolutions")]
    return [("strided", f"{_counted(len(names), 'convolution')}: {', '.join(names)}")]


def _layer_lines(classifier: Classifier) -> Lines:
    blank = torch.zeros(1, 3, classifier.patch, classifier.patch)
    stages = explainable_stages(classifier.module, blank)
    reach = Reach(classifier.module, blank)
    lines = []
    for name in [INPUT, *(stage.name for stage in stages)]:
        g = measure(classifier.module, name, blank)
        cells = f"1/{g.reduction}, {_counted(g.channels, 'channel')}, {g.cell_w} × {g.cell_h} cells"
        vanish = vanishing(classifier.module, name, blank)
        no_map = f"; no map of {', '.join(vanish)}: channels cancel each other" if vanish else ""
        lines.append(("layer", f"{name}: {cells}; {_smoothed_by(reach, g)}{no_map}"))
    return lines + [("note", text) for text in note_on_other_stages(classifier.module, stages)]


def _smoothed_by(reach: Reach, layer: LayerGeometry) -> str:
    """Say which methods do something at a layer."""
    methods = [method for method in METHODS if SMOOTHING[method].acts_on]
    effects = {method: reach.effect(method, layer) for method in methods}
    smooth = [method for method in methods if effects[method] == "smooths"]
    change = [method for method in methods if effects[method] == "changes"]
    by = "all methods" if smooth == methods else ", ".join(smooth) or "no method"
    also = f"; {', '.join(change)} only change activations and predictions" if change else ""
    return f"smoothed by {by}{also}"


def _counted(n: int, what: str) -> str:
    return f"{n} {what}" if n == 1 else f"{n} {what}s"


def _listed(values: tuple[float, ...]) -> str:
    return "(" + ", ".join(f"{v:g}" for v in values) + ")"
