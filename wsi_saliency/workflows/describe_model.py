"""What a classifier is, as facts for ``check-model``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

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
from wsi_saliency.workflows.answers import blank_facts, output_fact, target_fact
from wsi_saliency.workflows.canvas import ASSUMED_MPP, wanted_mpp
from wsi_saliency.workflows.facts import Fact, note

if TYPE_CHECKING:
    from wsi_saliency.models.classifier import Classifier
    from wsi_saliency.saliency.layers import LayerGeometry
    from wsi_saliency.settings import ModelSettings


def describe_model(classifier: Classifier, uri: str, target: str | None = None) -> list[Fact]:
    """Describe a classifier: what it wants, what it says, and the layers that can be explained.

    Parameters
    ----------
    classifier
        The classifier, on the CPU.
    uri
        What it was asked for as.
    target
        The class that is to be explained; None for the default one.

    Raises
    ------
    ModelError
        If it has no class ``target``.
    """
    c = classifier
    parameters = sum(p.numel() for p in c.module.parameters())
    aim = target_fact(c, target)
    return [
        Fact("model", uri, uri),
        Fact(
            "architecture",
            f"{c.architecture}, {parameters / 1e6:.2f} M parameters",
            {"name": c.architecture, "parameters": parameters},
        ),
        Fact("patch", f"{c.patch} × {c.patch} px", c.patch),
        _mpp(c),
        Fact(
            "normalisation",
            f"(pixel / 255 − {_listed(c.mean)}) / {_listed(c.std)}",
            {"mean": c.mean, "std": c.std},
        ),
        Fact("classes", _classes(c), {"names": c.class_names, "named": c.named}),
        output_fact(c),
        aim,
        *blank_facts(c, aim.value["index"]),
        Fact("sha256", c.sha256, c.sha256),
        _strided(c),
        *_layers(c),
        *map(note, c.notes),
    ]


def patch_mpp_stride(settings: ModelSettings) -> tuple[int, float, int]:
    """Return the side of a classifier's patches in pixels, its mpp, and its total stride in pixels.

    Raises
    ------
    ModelError
        If the classifier cannot be loaded.
    """
    classifier = load_chosen(settings)
    mpp = wanted_mpp(classifier)
    with eval_mode(classifier.module):
        blank = torch.zeros(1, 3, classifier.patch, classifier.patch)
        return classifier.patch, mpp, total_stride(classifier.module, blank)


def _classes(classifier: Classifier) -> str:
    if not classifier.named:
        return f"not named ({_counted(len(classifier.class_names), 'logit')})"
    return ", ".join(f"{i}: {name}" for i, name in enumerate(classifier.class_names))


def _mpp(classifier: Classifier) -> Fact:
    said = classifier.mpp
    text = f"{said:g} µm/px" if said else f"not stated; {ASSUMED_MPP} µm/px is assumed (--model-mpp)"
    return Fact("mpp", text, {"stated": said, "used": said or ASSUMED_MPP})


def _strided(classifier: Classifier) -> Fact:
    found = strided_convolutions(classifier.module)
    value = [
        {"name": name, "kernel": list(c.kernel_size), "stride": max(c.stride)} for name, c in found.items()
    ]
    names = [f"{name} ({'×'.join(map(str, c.kernel_size))}/{max(c.stride)})" for name, c in found.items()]
    if not names:
        return Fact("strided", "no strided convolutions", value)
    return Fact("strided", f"{_counted(len(names), 'convolution')}: {', '.join(names)}", value)


def _layers(classifier: Classifier) -> list[Fact]:
    blank = torch.zeros(1, 3, classifier.patch, classifier.patch)
    stages = explainable_stages(classifier.module, blank)
    reach = Reach(classifier.module, blank)
    facts = []
    for name in [INPUT, *(stage.name for stage in stages)]:
        g = measure(classifier.module, name, blank)
        cells = f"1/{g.reduction}, {_counted(g.channels, 'channel')}, {g.cell_w} × {g.cell_h} cells"
        vanish = vanishing(classifier.module, name, blank)
        no_map = f"; no map of {', '.join(vanish)}: channels cancel each other" if vanish else ""
        smoothed, effects = _smoothed_by(reach, g)
        value = {"name": name, "reduction": g.reduction, "channels": g.channels}
        value |= {"cells": [g.cell_w, g.cell_h], "effects": effects, "no_map_of": list(vanish)}
        facts.append(Fact("layers", f"{name}: {cells}; {smoothed}{no_map}", value))
    return [*facts, *map(note, note_on_other_stages(classifier.module, stages))]


def _smoothed_by(reach: Reach, layer: LayerGeometry) -> tuple[str, dict[str, str]]:
    """Say which methods do something at a layer, in words and method by method."""
    methods = [method for method in METHODS if not SMOOTHING[method].is_plain]
    effects = {method: reach.effect(method, layer) for method in methods}
    smooth = [method for method in methods if effects[method] == "smooths"]
    change = [method for method in methods if effects[method] == "changes"]
    by = "all methods" if smooth == methods else ", ".join(smooth) or "no method"
    also = f"; {', '.join(change)} only change activations and predictions" if change else ""
    return f"smoothed by {by}{also}", {method: str(effect) for method, effect in effects.items()}


def _counted(n: int, what: str) -> str:
    return f"{n} {what}" if n == 1 else f"{n} {what}s"


def _listed(values: tuple[float, ...]) -> str:
    return "(" + ", ".join(f"{v:g}" for v in values) + ")"
