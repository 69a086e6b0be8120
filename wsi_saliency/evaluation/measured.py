"""What an evaluation finds: plain figures, ready to be summed up, drawn and written."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

from wsi_saliency.evaluation.statistics import mean_of_known

if TYPE_CHECKING:
    from collections.abc import Iterable

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
class KindScores:
    """Scores of one kind of map, a row per patch.

    ``insertion_curves`` and ``deletion_curves``: (N, steps + 1) probabilities of the target;
    ``insertion`` and ``deletion``: (N,) areas under them; ``total_variation``: (N,);
    ``phase_stability``: (N,), nan where it was not measured.
    """

    kind: MapKind
    insertion_curves: Floats
    deletion_curves: Floats
    insertion: Floats
    deletion: Floats
    total_variation: Floats
    phase_stability: Floats

    @property
    def faithfulness(self) -> Floats:
        """Insertion minus deletion, (N,): one figure for both."""
        return self.insertion - self.deletion


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
class Phase:
    """How much one kind of map depends on where the picture lies between the network's strides.

    ``moves``: (N, K, 2) pixels (x, y) by which each patch was moved; ``correlation``: (N, K) of its map,
    moved back, with that of the patch where it was.
    """

    kind: MapKind
    moves: NDArray[np.int64]
    correlation: Floats

    @property
    def by_patch(self) -> Floats:
        """Mean over moves, (N,); nan where there is no correlation."""
        return mean_of_known(self.correlation)


def with_phase(scored: Iterable[KindScores], phase: Iterable[Phase]) -> list[KindScores]:
    """Add the phase stability of those kinds of map that have one to their scores."""
    of_kind = {found.kind: found.by_patch for found in phase}
    return [replace(s, phase_stability=of_kind.get(s.kind, s.phase_stability)) for s in scored]


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
class Localisation:
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
    phase, stability, sanity, localised
        Empty where not asked for.
    examples
        A few patches with maps.
    """

    facts: dict[str, Any]
    patch_rows: list[dict[str, Any]]
    scored: list[KindScores]
    prediction_difference: dict[str, Floats]
    phase: list[Phase] = field(default_factory=list)
    stability: list[Stability] = field(default_factory=list)
    sanity: list[SanityStage] = field(default_factory=list)
    localised: list[Localisation] = field(default_factory=list)
    examples: list[Example] = field(default_factory=list)
