"""The settings of a run: one frozen dataclass, from the command line to ``run.json``.

The names of methods and attributions live here, free of torch, so that ``--help`` is quick; the functions
behind them stand in the tables of `wsi_saliency.saliency`, which a test holds against these names.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

Method = Literal["none", "backward-hook", "centred-hook", "forward-hook", "surrogate"]
Attribution = Literal["gradient", "gradient-x-activation", "deeplift", "integrated-gradients", "gradcam"]
Precision = Literal["auto", "fp32", "bf16", "fp16"]
OmeZarrVersion = Literal["0.4", "0.5"]

METHODS: tuple[Method, ...] = get_args(Method)
ATTRIBUTIONS: tuple[Attribution, ...] = get_args(Attribution)
PRECISIONS: tuple[Precision, ...] = get_args(Precision)
OME_ZARR_VERSIONS: tuple[OmeZarrVersion, ...] = get_args(OmeZarrVersion)

DEFAULT_MODEL = "camelyon16"
DEFAULT_LAYER = "8"
MAX_OVERLAP = 0.9


@dataclass(frozen=True)
class RunSettings:
    """Everything that decides what a run computes and writes.

    Parameters
    ----------
    model
        Model URI: ``demo``, ``camelyon16``, ``timm:NAME`` or a path to a weights file.
    weights
        Weights for ``timm:NAME``.
    method, attribution
        How gradients are smoothed, and what is computed from them.
    surrogate
        File of ``train-surrogate`` for the method of that name; None takes the one that comes with ``demo``.
    layer
        Module name, reduction (``"8"``: the last feature stage at 1/8 resolution), ``"last"`` or ``"input"``;
        None is 8, and the last stage for Grad-CAM.
    target
        Class name or index; None picks the single logit or the one class that is called tumour.
    overlap
        Share of a patch that it has in common with the next, 0 to 0.9.
    mpp
        µm per level-0 pixel of the slide, in place of what the file says.
    model_mpp
        µm per pixel the classifier wants, in place of what its description says.
    patch
        Side of a patch in canvas pixels, in place of the classifier's own.
    tissue_threshold
        Share of a patch that must be tissue for it to be explained.
    batch
        Patches per forward pass; None picks one by device.
    workers
        Threads that read the slide.
    device, precision
        Where the classifier runs, and in which number format.
    ome_zarr
        Version of the OME-Zarr format to write.
    """

    model: str = DEFAULT_MODEL
    weights: Path | None = None
    method: Method = "backward-hook"
    attribution: Attribution = "gradient"
    surrogate: Path | None = None
    layer: str | None = None
    target: str | None = None
    overlap: float = 0.5
    mpp: float | None = None
    model_mpp: float | None = None
    patch: int | None = None
    tissue_threshold: float = 0.1
    batch: int | None = None
    workers: int = 4
    device: str = "auto"
    precision: Precision = "auto"
    ome_zarr: OmeZarrVersion = "0.4"

    def to_json(self) -> dict[str, Any]:
        """Return the settings as JSON-ready values."""
        return {k: str(v) if isinstance(v, Path) else v for k, v in asdict(self).items()}


def default_layer(attribution: Attribution) -> str:
    """Return the layer that is explained if none is named: the last stage for Grad-CAM, else that at 1/8."""
    return "last" if attribution == "gradcam" else DEFAULT_LAYER
