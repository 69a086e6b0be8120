"""Settings that only evaluations have, by what they concern."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path  # noqa: TC003 - the command line reads the types
from typing import ClassVar, Literal, get_args

from wsi_saliency.errors import SettingsError
from wsi_saliency.settings.option import Bounds, option, varied, whole
from wsi_saliency.settings.parts import (
    ATTRIBUTIONS,
    METHODS,
    Attribution,
    Method,
    SampleSettings,
    Settings,
)

Substrate = Literal["zeros", "blur", "mean", "white"]
ScoreOn = Literal["original", "method"]

SUBSTRATES: tuple[Substrate, ...] = get_args(Substrate)
SCORE_ON: tuple[ScoreOn, ...] = get_args(ScoreOn)


@dataclass(frozen=True, kw_only=True)
class ComparisonSettings(Settings):
    """Which maps are compared: every method × attribution × layer."""

    heading: ClassVar[str] = "Maps"
    methods: tuple[Method, ...] = option(
        (),
        f"Of {', '.join(METHODS)}; none is always among them. all: those there are for the classifier, "
        "shift-average only where no hook reaches.",
        flag="method",
        choices=METHODS,
        everything=(),
        shown="all",
    )
    attributions: tuple[Attribution, ...] = option(
        (),
        f"Of {', '.join(ATTRIBUTIONS)}; all: all of them.",
        flag="attribution",
        choices=ATTRIBUTIONS,
        everything=ATTRIBUTIONS,
        shown="gradient,deeplift",
    )
    layers: tuple[str, ...] = option(
        (),
        "Module names, reductions, last, input.",
        flag="layer",
        shown="input,4,8,16,last",
    )


@dataclass(frozen=True, kw_only=True)
class ScoredPatchesSettings(SampleSettings):
    """Which patches are explained and scored."""

    seed: int = varied(
        SampleSettings,
        "seed",
        0,
        help="Decides which patches are taken, the random maps, and the random networks of --sanity.",
    )
    predicted_positive: bool = option(False, "Sample only patches whose target probability is over one half.")


@dataclass(frozen=True, kw_only=True)
class ScoringSettings(Settings):
    """How pixels are inserted and deleted."""

    heading: ClassVar[str] = "Scores"
    score_on: ScoreOn = option(
        "original", "Score on the classifier as it is, or as each method changes it.", choices=SCORE_ON
    )
    deletion_to: Substrate = option("zeros", "What deleted pixels become.", choices=SUBSTRATES)
    insertion_from: Substrate = option("blur", "What pixels are inserted into.", choices=SUBSTRATES)
    step: int | None = option(
        None,
        "Pixels changed at a time.",
        metavar="PIXELS",
        within=whole(1),
        shown="8 × the patch's width",
    )


@dataclass(frozen=True, kw_only=True)
class AnnotationSettings(Settings):
    """What maps are compared with."""

    heading: ClassVar[str] = "Annotations"
    annotations: Path | None = option(
        None,
        "What was drawn on the slide, or a folder with a file for each slide's name: QuPath GeoJSON, "
        "ASAP XML or Camelyon JSON. The slides' whole maps are compared with it.",
        metavar="FILE|FOLDER",
    )
    annotation_classes: tuple[str, ...] = option(
        (),
        "Annotations that count; may be repeated.",
        flag="annotation-class",
        metavar="NAME",
        repeated=True,
        shown="all",
    )
    annotation_scale: float = option(
        1.0,
        "Pixels of the slide per pixel of the annotations.",
        metavar="F",
        within=Bounds(0, open=True),
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.annotation_classes and self.annotations is None:
            raise SettingsError(
                f"annotation_classes (--annotation-class) is {', '.join(self.annotation_classes)}, and there "
                "are no annotations; name them with --annotations"
            )


@dataclass(frozen=True, kw_only=True)
class CheckSettings(Settings):
    """What else is asked of maps."""

    heading: ClassVar[str] = "Checks"
    sanity: bool = option(
        False, "Randomise the classifier stage by stage; maps that do not change are flagged."
    )
    phase_moves: int = option(
        4,
        "Moves of each patch by less than the network's total stride, after which its map should be the "
        "same; 0 for none.",
        metavar="N",
        within=whole(0),
    )
    stability_mpx: float = option(
        4.0,
        "Size of the region of each slide that is mapped on two grids, at the classifier's resolution; "
        "0 for none.",
        metavar="MPX",
        within=Bounds(0, 16),
    )
