"""The settings of an evaluation, from the command line to ``metrics.json``; free of torch."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from wsi_saliency.errors import SettingsError
from wsi_saliency.settings import BOUNDS, DEFAULT_MODEL, Attribution, Bounds, Method, Precision, check_numbers

Substrate = Literal["zeros", "blur", "mean", "white"]
ScoreOn = Literal["original", "method"]

MAX_STABILITY_MPX = 16
SUBSTRATES: tuple[Substrate, ...] = get_args(Substrate)
_BOUNDS = {
    "patches": Bounds(1),
    "seed": Bounds(0),
    "step": Bounds(1),
    "annotation_scale": Bounds(0, open=True),
    "stability_mpx": Bounds(0, MAX_STABILITY_MPX),
}
SCORE_ON: tuple[ScoreOn, ...] = get_args(ScoreOn)


@dataclass(frozen=True)
class EvaluationSettings:
    """Everything that decides what an evaluation computes.

    Parameters
    ----------
    model, weights, surrogate, target, mpp, model_mpp, patch, tissue_threshold, batch, workers, device
        As in `RunSettings`, and so is ``precision``.
    methods, attributions, layers
        What is compared; empty takes all methods that are available, ``gradient`` and ``deeplift``, and the
        stages at reductions 4, 8, 16, the last one and the input.
    patches
        Patches to sample from the tissue, evenly over the slides.
    predicted_positive
        Keep only patches whose target probability is over one half.
    seed
        Decides which patches are taken, and is that of random maps, bootstrap and randomised networks.
    deletion_to, insertion_from
        What takes the place of pixels.
    step
        Pixels per step; None is 8 × the patch's width.
    score_on
        Whether curves are those of the classifier as it is, or as the method changes it.
    annotations
        A file for one slide, or a folder with a file of each slide's name.
    annotation_classes
        Names of the annotations that count; empty: all.
    annotation_scale
        Level-0 pixels of this slide per pixel of the annotations.
    phase_moves
        Moves of each patch that phase stability is the mean of; 0 leaves it out.
    stability_mpx
        Megapixels, at the classifier's resolution, of the region of each slide that is mapped on two grids; 0
        leaves that out.
    sanity
        Whether to randomise the classifier stage by stage.

    Raises
    ------
    SettingsError
        If a number is out of its bounds, or two settings do not go together.
    """

    model: str = DEFAULT_MODEL
    weights: Path | None = None
    methods: tuple[Method, ...] = ()
    attributions: tuple[Attribution, ...] = ()
    layers: tuple[str, ...] = ()
    surrogate: Path | None = None
    target: str | None = None
    patches: int = 100
    predicted_positive: bool = False
    seed: int = 0
    deletion_to: Substrate = "zeros"
    insertion_from: Substrate = "blur"
    step: int | None = None
    score_on: ScoreOn = "original"
    annotations: Path | None = None
    annotation_classes: tuple[str, ...] = ()
    annotation_scale: float = 1.0
    phase_moves: int = 4
    stability_mpx: float = 4.0
    sanity: bool = False
    mpp: float | None = None
    model_mpp: float | None = None
    patch: int | None = None
    tissue_threshold: float = 0.1
    batch: int | None = None
    workers: int = 4
    device: str = "auto"
    precision: Precision = "auto"

    def __post_init__(self) -> None:
        check_numbers(self, BOUNDS | _BOUNDS)
        if self.surrogate is not None and self.methods and "surrogate" not in self.methods:
            raise SettingsError(
                f"surrogate (--surrogate {self.surrogate}) is for the method of that name; add surrogate to "
                f"--methods {','.join(self.methods)} to use it, or leave it out"
            )

    def to_json(self) -> dict[str, Any]:
        """Return the settings as JSON-ready values."""
        return {k: str(v) if isinstance(v, Path) else v for k, v in asdict(self).items()}
