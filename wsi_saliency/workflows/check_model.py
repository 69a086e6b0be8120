"""Whether a classifier can be trusted with maps: all that can be said of it, as facts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from wsi_saliency.models.loading import load_chosen
from wsi_saliency.workflows.describe_model import describe_model

if TYPE_CHECKING:
    from wsi_saliency.settings import ModelCheckSettings
    from wsi_saliency.workflows.facts import Fact


def check_model(settings: ModelCheckSettings) -> list[Fact]:
    """Load a classifier, describe it and try it out.

    Raises
    ------
    ModelError
        If the classifier cannot be loaded, does not give logits, or lacks the class that is asked for.
    """
    classifier = load_chosen(settings)
    return describe_model(classifier, settings.model, settings.target)
