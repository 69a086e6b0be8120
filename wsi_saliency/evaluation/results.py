"""What an evaluation finds: plain figures, ready to be summed up, drawn and written."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from wsi_saliency.settings import Attribution, Method

    Floats = NDArray[np.float64]

Control = Literal["random", "centred-gaussian", "blurred-none"]


@dataclass(frozen=True)
class MapKind:
    """Which map it is: of a method, an attribution and a layer, or a control.

    Parameters
    ----------
    method
        Smoothing method; for ``blurred-none`` the method whose total variation the blur reaches; None for the
        controls that look at no network.
    attribution, layer, reduction
        What was explained, the layer by its module name and by its reduction; None as for the method.
    control
        None for a map of a method.
    """

    method: Method | None
    attribution: Attribution | None
    layer: str | None
    reduction: int | None
    control: Control | None = None

    @property
    def label(self) -> str:
        """Name for tables and legends, such as ``backward-hook · deeplift · layer2``."""
        parts = [self.control, self.method, self.attribution, self.layer]
        return " · ".join(part for part in parts if part)


@dataclass(frozen=True)
class Scored:
    """Scores of one kind of map, a row per patch.

    ``insertion_curves`` and ``deletion_curves``: (N, steps + 1) probabilities of the target;
    ``insertion`` and ``deletion``: (N,) areas under them; ``total_variation``: (N,).
    """

    kind: MapKind
    insertion_curves: Floats
    deletion_curves: Floats
    insertion: Floats
    deletion: Floats
    total_variation: Floats


@dataclass(frozen=True)
class Stability:
    """How much a slide's map depends on where the grid lies: its correlation with that of a moved grid."""

    slide: str
    method: str
    attribution: str
    layer: str
    overlap: float
    correlation: float


@dataclass(frozen=True)
class SanityStage:
    """Maps of a network that is random from the head down to ``module``, against the original maps.

    ``spearman``: (N,) rank correlation of each patch's map with its original; ``insertion`` and ``deletion``:
    (N,) areas, of the random network's map scored on the intact classifier. The first stage is the intact
    network, with ``module`` None.
    """

    method: str
    attribution: str
    layer: str
    module: str | None
    spearman: Floats
    insertion: Floats
    deletion: Floats


@dataclass(frozen=True)
class Localised:
    """How well a slide's map, or the patch probabilities (``kind`` None), finds the annotated regions.

    Over the cells of the map in tissue: area under the ROC curve, average precision, ``hit`` (the pointing
    game: whether the largest value lies in an annotation), and the annotated share of the tissue, which is
    what average precision and hits are by chance.
    """

    slide: str
    kind: MapKind | None
    auroc: float
    average_precision: float
    hit: bool
    annotated: float


@dataclass(frozen=True)
class Example:
    """One patch for the sheet of examples: RGB (P, P, 3) uint8, and maps (h, w) float32 by kind."""

    patch: NDArray[np.uint8]
    probability: float
    maps: dict[MapKind, NDArray[np.float32]]


@dataclass(frozen=True)
class Evaluation:
    """Everything that an evaluation found.

    Parameters
    ----------
    facts
        JSON-ready: settings, versions, model (uri, sha256, classes), target, slides, seconds.
    patch_rows
        A JSON-ready row for each scored patch: slide, level-0 ``x, y, w, h``, probability of the target.
    scored
        Maps of all methods × attributions × layers, then the controls.
    prediction_difference
        (N,) |p_method − p| by method.
    stability, sanity, localised
        Empty where not asked for.
    examples
        A few patches with maps.
    """

    facts: dict[str, Any]
    patch_rows: list[dict[str, Any]]
    scored: list[Scored]
    prediction_difference: dict[str, Floats]
    stability: list[Stability] = field(default_factory=list)
    sanity: list[SanityStage] = field(default_factory=list)
    localised: list[Localised] = field(default_factory=list)
    examples: list[Example] = field(default_factory=list)
