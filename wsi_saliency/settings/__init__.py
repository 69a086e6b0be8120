"""Every option once: its name, default, range, choices and help, from the command line to ``run.json``.

Settings are frozen dataclasses, free of torch, so that ``--help`` is quick. Methods and attributions are
names here; the functions behind them stand in the tables of `wsi_saliency.saliency`; a test compares the two.
"""

from wsi_saliency.settings.commands import (
    BatchSettings,
    EvaluationSettings,
    InspectSettings,
    ModelCheckSettings,
    RunSettings,
    TrainingSettings,
)
from wsi_saliency.settings.evaluation import SCORE_ON, SUBSTRATES, ScoreOn, Substrate
from wsi_saliency.settings.option import Bounds, Option, check, option, options_of, varied, whole
from wsi_saliency.settings.parts import (
    ALL_GPUS,
    ALL_TARGETS,
    ATTRIBUTIONS,
    DEFAULT_ATTRIBUTION,
    DEFAULT_LAYER,
    DEFAULT_METHOD,
    DEFAULT_MODEL,
    EXPORT_FORMATS,
    METHODS,
    OME_ZARR_VERSIONS,
    PRECISIONS,
    Attribution,
    ExportFormat,
    Method,
    ModelSettings,
    OmeZarrVersion,
    Precision,
    Settings,
    check_range,
    default_layer,
)

__all__ = [
    "ALL_GPUS",
    "ALL_TARGETS",
    "ATTRIBUTIONS",
    "DEFAULT_ATTRIBUTION",
    "DEFAULT_LAYER",
    "DEFAULT_METHOD",
    "DEFAULT_MODEL",
    "EXPORT_FORMATS",
    "METHODS",
    "OME_ZARR_VERSIONS",
    "PRECISIONS",
    "SCORE_ON",
    "SUBSTRATES",
    "Attribution",
    "BatchSettings",
    "Bounds",
    "EvaluationSettings",
    "ExportFormat",
    "InspectSettings",
    "Method",
    "ModelCheckSettings",
    "ModelSettings",
    "OmeZarrVersion",
    "Option",
    "Precision",
    "RunSettings",
    "ScoreOn",
    "Settings",
    "Substrate",
    "TrainingSettings",
    "check",
    "check_range",
    "default_layer",
    "option",
    "options_of",
    "varied",
    "whole",
]
