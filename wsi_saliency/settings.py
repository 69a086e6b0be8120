"""The settings of a run: one frozen dataclass, from the command line to ``run.json``.

The names of methods and attributions live here, free of torch, so that ``--help`` is quick; the functions
behind them stand in the tables of `wsi_saliency.saliency`, which a test holds against these names.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from wsi_saliency.errors import SettingsError

if TYPE_CHECKING:
    from collections.abc import Mapping

Method = Literal["none", "backward-hook", "centred-hook", "forward-hook", "surrogate"]
Attribution = Literal["gradient", "gradient-x-activation", "deeplift", "integrated-gradients", "gradcam"]
Precision = Literal["auto", "fp32", "bf16", "fp16"]
OmeZarrVersion = Literal["0.4", "0.5"]

METHODS: tuple[Method, ...] = get_args(Method)
ATTRIBUTIONS: tuple[Attribution, ...] = get_args(Attribution)
PRECISIONS: tuple[Precision, ...] = get_args(Precision)
OME_ZARR_VERSIONS: tuple[OmeZarrVersion, ...] = get_args(OmeZarrVersion)

DEFAULT_MODEL = "camelyon16"
DEFAULT_METHOD: Method = "centred-hook"  # these four follow from the rule in docs/choosing.md
DEFAULT_ATTRIBUTION: Attribution = "deeplift"
DEFAULT_LAYER = "16"
DEFAULT_OVERLAP = 0.5
MAX_OVERLAP = 0.9
MAX_PATCH = 4096  # pixels; a ResNet's first layers take 4 GB for one such patch
RANGE_LIMIT = 1e30  # of values, and one over it of their distance: far beyond any map


@dataclass(frozen=True)
class Bounds:
    """Which numbers a setting may be: finite, from ``low`` to ``high``, without ``low`` where ``open``."""

    low: float
    high: float = math.inf
    open: bool = False

    def __contains__(self, value: float) -> bool:
        """Tell whether a number is one of them; NaN never is."""
        above = self.low < value if self.open else self.low <= value
        return above and value <= self.high and math.isfinite(value)

    def __str__(self) -> str:
        above = f"above {self.low:g}" if self.open else f"at least {self.low:g}"
        return above if self.high == math.inf else f"from {self.low:g} to {self.high:g}"


BOUNDS: dict[str, Bounds] = {
    "overlap": Bounds(0, MAX_OVERLAP),
    "mpp": Bounds(0, open=True),
    "model_mpp": Bounds(0, open=True),
    "patch": Bounds(8, MAX_PATCH),
    "tissue_threshold": Bounds(0, 1),
    "batch": Bounds(1),
    "workers": Bounds(1),
}
"""Of the settings that runs, evaluations and trainings share."""


def check_numbers(settings: object, bounds: Mapping[str, Bounds]) -> None:
    """Find out whether the numbers among some settings are within bounds; None is, the default.

    Raises
    ------
    SettingsError
        If one is not.
    """
    for name, allowed in bounds.items():
        value = getattr(settings, name, None)
        if value is not None and value not in allowed:
            option = f"--{name.replace('_', '-')}"
            raise SettingsError(f"{name} ({option}) is {value:g}; it has to be a number {allowed}")


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
    signed
        Whether ``gradient`` keeps its sign, which is that of the layer's channels, in place of the magnitude.
    surrogate
        File of ``train-surrogate`` for the method of that name; None takes the one that comes with ``demo``.
    layer
        Module name, reduction (``"8"``: the last feature stage at 1/8 resolution), ``"last"`` or ``"input"``;
        None is 16, and the last stage for Grad-CAM.
    target
        Class name or index; None picks the single logit or the one class that is called tumour.
    overlap
        Share of a patch that it has in common with the next, 0 to 0.9, as `stride_for` rounds it.
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
    range
        Values of the first and the last colour, of the overview and of viewers that read OME-Zarr; None takes
        the 1st and 99th percentile of each slide.

    Raises
    ------
    SettingsError
        If a number is out of its bounds, or two settings do not go together.
    """

    model: str = DEFAULT_MODEL
    weights: Path | None = None
    method: Method = DEFAULT_METHOD
    attribution: Attribution = DEFAULT_ATTRIBUTION
    signed: bool = False
    surrogate: Path | None = None
    layer: str | None = None
    target: str | None = None
    overlap: float = DEFAULT_OVERLAP
    mpp: float | None = None
    model_mpp: float | None = None
    patch: int | None = None
    tissue_threshold: float = 0.1
    batch: int | None = None
    workers: int = 4
    device: str = "auto"
    precision: Precision = "auto"
    ome_zarr: OmeZarrVersion = "0.4"
    range: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        check_numbers(self, BOUNDS)
        if self.range is not None:
            check_range(*self.range)
        if self.surrogate is not None and self.method != "surrogate":
            raise SettingsError(
                f"surrogate (--surrogate {self.surrogate}) is for the method of that name; add "
                f"--method surrogate to use it, or leave it out with {self.method}"
            )

    def to_json(self) -> dict[str, Any]:
        """Return the settings as JSON-ready values."""
        return {k: _json_ready(v) for k, v in asdict(self).items()}


def _json_ready(value: object) -> object:
    if isinstance(value, Path):
        return str(value)
    return list(value) if isinstance(value, tuple) else value


def check_range(low: float, high: float) -> None:
    """Find out whether colours can span two values.

    Raises
    ------
    SettingsError
        If they are not finite, or the first is not below the second.
    """
    if not -RANGE_LIMIT <= low < high <= RANGE_LIMIT or high - low < 1 / RANGE_LIMIT:
        raise SettingsError(
            f"--range {low:g},{high:g}: LOW has to be below HIGH, both finite: --range 0,0.001"
        )


def default_layer(attribution: Attribution) -> str:
    """Return the layer that is explained if none is named: the last stage for Grad-CAM, else that at 1/16."""
    return "last" if attribution == "gradcam" else DEFAULT_LAYER
