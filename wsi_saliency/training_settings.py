"""The settings of a surrogate's training, free of torch, so that ``--help`` is quick."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from wsi_saliency.settings import BOUNDS, DEFAULT_MODEL, Bounds, check_numbers

if TYPE_CHECKING:
    from pathlib import Path

_BOUNDS = {
    "patches": Bounds(2),
    "epochs": Bounds(1),
    "lr": Bounds(0, open=True),
    "seed": Bounds(0),
    "held_out": Bounds(0, 0.9),
}


@dataclass(frozen=True)
class TrainingSettings:
    """Everything that decides what `wsi_saliency.workflows.train.train_surrogate_on_slides` does.

    Parameters
    ----------
    model, weights, model_mpp, patch, mpp, device, workers
        As in `wsi_saliency.settings.RunSettings`.
    patches
        Patches to sample, held-out ones included, evenly over the slides.
    held_out
        Share of the patches, from a part of each slide of its own, that is scored and not trained on.
    balance
        Class, by name or index, as which half of the patches shall be predicted; None takes all as they come.
    epochs, batch, lr
        Passes over the patches, patches per step, and Adam's step size.
    seed
        Decides which patches are taken, and their order.

    Raises
    ------
    SettingsError
        If a number is out of its bounds.
    """

    model: str = DEFAULT_MODEL
    weights: Path | None = None
    patches: int = 1000
    held_out: float = 0.1
    balance: str | None = None
    epochs: int = 10
    batch: int = 32
    lr: float = 1e-3
    seed: int = 0
    mpp: float | None = None
    model_mpp: float | None = None
    patch: int | None = None
    workers: int = 4
    device: str = "auto"

    def __post_init__(self) -> None:
        check_numbers(self, BOUNDS | _BOUNDS)
