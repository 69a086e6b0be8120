"""Smooth hidden-layer saliency heatmaps of tumour classifiers over whole-slide images.

The public names are imported when they are first used, so that ``import wsi_saliency`` is quick.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from wsi_saliency.evaluation.causal import insertion_deletion as insertion_deletion
    from wsi_saliency.evaluation.metrics import total_variation as total_variation
    from wsi_saliency.evaluation.phase import phase_stability as phase_stability
    from wsi_saliency.heatmap.result import Result as Result
    from wsi_saliency.models.classifier import Classifier as Classifier
    from wsi_saliency.models.loading import load_classifier as load_classifier
    from wsi_saliency.models.own import own_classifier as own_classifier
    from wsi_saliency.models.spec import ClassifierSpec as ClassifierSpec
    from wsi_saliency.saliency.patches import PatchExplainer as PatchExplainer
    from wsi_saliency.saliency.patches import explain_patches as explain_patches
    from wsi_saliency.saliency.smoothing import smoothed as smoothed
    from wsi_saliency.saliency.surrogate import Surrogate as Surrogate
    from wsi_saliency.saliency.surrogate_training import train_surrogate as train_surrogate
    from wsi_saliency.settings import EvaluationSettings as EvaluationSettings
    from wsi_saliency.settings import RunSettings as RunSettings
    from wsi_saliency.slides.opening import open_slide as open_slide
    from wsi_saliency.workflows.evaluate import evaluate_slide as evaluate_slide
    from wsi_saliency.workflows.evaluate import evaluate_slides as evaluate_slides
    from wsi_saliency.workflows.explain import explain_slide as explain_slide
    from wsi_saliency.workflows.explain import load_explainer as load_explainer

_HOMES = {
    "Classifier": "models.classifier",
    "ClassifierSpec": "models.spec",
    "EvaluationSettings": "settings",
    "evaluate_slide": "workflows.evaluate",
    "evaluate_slides": "workflows.evaluate",
    "insertion_deletion": "evaluation.causal",
    "phase_stability": "evaluation.phase",
    "total_variation": "evaluation.metrics",
    "PatchExplainer": "saliency.patches",
    "Result": "heatmap.result",
    "RunSettings": "settings",
    "explain_patches": "saliency.patches",
    "explain_slide": "workflows.explain",
    "load_classifier": "models.loading",
    "load_explainer": "workflows.explain",
    "open_slide": "slides.opening",
    "own_classifier": "models.own",
    "smoothed": "saliency.smoothing",
    "train_surrogate": "saliency.surrogate_training",
    "Surrogate": "saliency.surrogate",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
