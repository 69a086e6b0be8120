"""Each kind of map against its rivals: the plain map, and the controls that a good map has to beat."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, get_args

from wsi_saliency.evaluation.measured import MapKind
from wsi_saliency.evaluation.statistics import Summary, Verdict, paired, summary, verdict
from wsi_saliency.mapspec import PLAIN

if TYPE_CHECKING:
    from collections.abc import Iterable

    from wsi_saliency.evaluation.measured import Evaluation, Floats, KindScores

Metric = Literal["insertion", "deletion", "faithfulness", "phase_stability", "total_variation"]
Rival = Literal["none", "blurred-none", "random", "centred-gaussian"]

METRICS: tuple[Metric, ...] = get_args(Metric)
FAITHFULNESS: tuple[Metric, ...] = ("insertion", "deletion")
RIVALS: tuple[Rival, ...] = get_args(Rival)
CONTROLS: tuple[Rival, ...] = RIVALS[1:]
HIGHER_IS_BETTER: dict[Metric, bool] = {
    "insertion": True,
    "deletion": False,
    "faithfulness": True,
    "phase_stability": True,
    "total_variation": False,
}
_OF_ALL: tuple[Metric, ...] = (*FAITHFULNESS, "faithfulness")
_AGAINST: dict[Rival, tuple[Metric, ...]] = {
    "none": METRICS,
    "blurred-none": (*_OF_ALL, "phase_stability"),
    "random": _OF_ALL,
    "centred-gaussian": _OF_ALL,
}


@dataclass(frozen=True)
class Difference:
    """A map's score minus its rival's on the same patches, and what that says."""

    summary: Summary
    verdict: Verdict


@dataclass(frozen=True)
class ScoreCard:
    """A kind of map with its scores and its differences to those rivals that there are; none for controls."""

    kind: MapKind
    scores: dict[Metric, Summary]
    against: dict[Rival, dict[Metric, Difference]]


def compare(evaluation: Evaluation) -> list[ScoreCard]:
    """Sum up all scores and set each map against its rivals, in the order of ``evaluation.scored``."""
    seed = bootstrap_seed(evaluation)
    by_kind = {scored.kind: scored for scored in evaluation.scored}
    return [_compare(scored, by_kind, seed) for scored in evaluation.scored]


def bootstrap_seed(evaluation: Evaluation) -> int:
    """Return the ``seed`` of the settings in the facts, 0 if there is none."""
    return int(evaluation.facts.get("settings", {}).get("seed", 0))


def values(scored: KindScores, metric: Metric) -> Floats:
    """Return one metric's values, (N,)."""
    found: Floats = getattr(scored, metric)
    return found


def deepest_last(kinds: Iterable[MapKind]) -> list[str]:
    """Layers of the methods' maps, each once, from the input to the deepest."""
    layers = {kind.layer: kind.reduction or 0 for kind in kinds if kind.layer and not kind.control}
    return sorted(layers, key=lambda layer: layers[layer])


def distinct(names: Iterable[str | None]) -> list[str]:
    """Names in the order in which they come, each once."""
    return list(dict.fromkeys(name for name in names if name))


def _compare(scored: KindScores, by_kind: dict[MapKind, KindScores], seed: int) -> ScoreCard:
    rivals = _rivals(scored.kind)
    return ScoreCard(
        scored.kind,
        {metric: summary(values(scored, metric), seed) for metric in METRICS},
        {
            name: {m: _difference(scored, by_kind[rival], m, seed) for m in compared_metrics(name)}
            for name, rival in rivals.items()
            if rival in by_kind
        },
    )


def compared_metrics(rival: Rival) -> tuple[Metric, ...]:
    """Metrics in which a map is set against a rival: those that the rival has and was not made to share."""
    return _AGAINST[rival]


def _rivals(kind: MapKind) -> dict[Rival, MapKind]:
    if kind.control:
        return {}
    nothing = MapKind(None, None, None, None)
    rivals: dict[Rival, MapKind] = {
        "none": replace(kind, method=PLAIN),
        "blurred-none": replace(kind, control="blurred-none"),
        "random": replace(nothing, control="random"),
        "centred-gaussian": replace(nothing, control="centred-gaussian"),
    }
    # The plain map is no rival of itself, nor is its blur to its own total variation, which is no blur.
    return {n: r for n, r in rivals.items() if kind.method != PLAIN or n not in ("none", "blurred-none")}


def _difference(scored: KindScores, rival: KindScores, metric: Metric, seed: int) -> Difference:
    found = paired(values(scored, metric), values(rival, metric), seed)
    return Difference(found, verdict(found, higher_is_better=HIGHER_IS_BETTER[metric]))
