"""What a classifier is, as lines of text for ``check-model``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from wsi_saliency.errors import ModelError
from wsi_saliency.models.classifier import probabilities, standard_logits
from wsi_saliency.models.loading import load_chosen
from wsi_saliency.saliency.cancellation import vanishing
from wsi_saliency.saliency.layers import (
    INPUT,
    explainable_stages,
    measure,
    note_on_other_stages,
    strided_convolutions,
    total_stride,
)
from wsi_saliency.saliency.network import eval_mode
from wsi_saliency.saliency.reach import Reach
from wsi_saliency.saliency.smoothing import SMOOTHING
from wsi_saliency.settings import METHODS
from wsi_saliency.workflows.canvas import ASSUMED_MPP, wanted_mpp

if TYPE_CHECKING:
    from wsi_saliency.models.classifier import Classifier
    from wsi_saliency.saliency.layers import LayerGeometry
    from wsi_saliency.settings import ModelSettings

Lines = list[tuple[str, str]]


def describe_model(settings: ModelSettings) -> Lines:
    """Describe a classifier: what it wants, what it says, and the layers that can be explained.

    Raises
    ------
    ModelError
        If the classifier cannot be loaded, or does not give logits.
    """
    c = _classifier(settings)
    parameters = sum(p.numel() for p in c.module.parameters())
    return [
        ("model", settings.model),
        ("architecture", f"{c.architecture}, {parameters / 1e6:.2f} M parameters"),
        ("input", f"{c.patch} × {c.patch} px"),
        (
            "mpp",
            f"{c.mpp:g} µm/px" if c.mpp else f"not stated; {ASSUMED_MPP} µm/px is assumed (--model-mpp)",
        ),
        ("normalisation", f"(pixel / 255 − {_listed(c.mean)}) / {_listed(c.std)}"),
        ("classes", _classes(c)),
        ("output", f"{'one logit' if (n := len(c.class_names)) == 1 else f'{n} logits'}, {c.output}"),
        ("target", _default_target(c)),
        ("glass", f"a white patch scores {_glass(c)}"),
        ("sha256", c.sha256),
        *_strided_lines(c),
        *_layer_lines(c),
        *(("note", note) for note in c.notes),
    ]


def patch_mpp_stride(settings: ModelSettings) -> tuple[int, float, int]:
    """Return the side of a classifier's patches in pixels, its mpp, and its total stride in pixels.

    Raises
    ------
    ModelError
        If the classifier cannot be loaded.
    """
    classifier = _classifier(settings)
    mpp = wanted_mpp(classifier)
    with eval_mode(classifier.module):
        blank = torch.zeros(1, 3, classifier.patch, classifier.patch)
        return classifier.patch, mpp, total_stride(classifier.module, blank)


def _classifier(settings: ModelSettings) -> Classifier:
    return load_chosen(settings)


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


def _glass(classifier: Classifier, shown: int = 10) -> str:
    """Say what a patch without tissue scores: a class that it is sure of is not one to look for tumour in."""
    white = np.full((1, classifier.patch, classifier.patch, 3), 255, np.uint8)
    with torch.no_grad():
        logits = standard_logits(classifier.module(classifier.normalised(white, torch.device("cpu"))))
    scores = probabilities(logits, classifier.output)[0].tolist()
    told = [f"{name} {p:.3f}" for name, p in zip(classifier.class_names, scores, strict=True)][:shown]
    return ", ".join(told) + (", …" if len(scores) > shown else "")


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
    methods = [method for method in METHODS if not SMOOTHING[method].is_plain]
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
