"""Loading: where classifiers come from and what they are. Only here are timm and huggingface_hub imported."""

from wsi_saliency.models.classifier import Classifier, probabilities, standard_logits
from wsi_saliency.models.loading import load_classifier, model_sources

__all__ = ["Classifier", "load_classifier", "model_sources", "probabilities", "standard_logits"]
