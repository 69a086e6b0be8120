"""What an evaluation says to those who have to choose a map: what was asked, what came out, what it means.

The sentences are for readers who know tissue, not methods: each stands by itself.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from wsi_saliency.evaluation.rivals import (
    FAITHFULNESS,
    bootstrap_seed,
    compare,
    distinct,
)
from wsi_saliency.evaluation.statistics import FEWEST, summary
from wsi_saliency.report.choosing import best, choice, knowing, smoothing
from wsi_saliency.report.wording import (
    interval,
    listing,
    mean,
    number,
    plural,
    some,
    spoken,
    with_method,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from wsi_saliency.evaluation.measured import Evaluation, SanityStage
    from wsi_saliency.evaluation.rivals import ScoreCard

UNCHANGED = 0.5
"""A map whose rank correlation with that of a random network is above this, in magnitude and in the mean, is
not about what the network has learned. By chance, maps of 7 × 7 cells reach 0.1, and smooth ones 0.3."""

STEADY = 0.9
"""Correlation from which on two maps of the same tissue may be taken for the same map."""

FEW_PATCHES = 20


def findings(evaluation: Evaluation) -> list[str]:
    """Say what was found: cautions, then questions with their answers, the most important first.

    No name of a slide occurs in them, so they can be printed anywhere.
    """
    compared = [c for c in compare(evaluation) if not c.kind.control]
    return [
        *_cautions(evaluation),
        *choice(compared),
        *(best(compared, metric, evaluation) for metric in FAITHFULNESS if compared),
        *knowing(compared),
        *(s for method in distinct(c.kind.method for c in compared) for s in smoothing(compared, method)),
        *_phase(compared, evaluation),
        *_smoothness(compared),
        *_predictions(evaluation),
        *_stability(evaluation),
        *_sanity(evaluation),
        *_localised(evaluation),
    ]


def fully_random(evaluation: Evaluation) -> list[SanityStage]:
    """Return the last stage of each map's randomisation, in which the whole network is random."""
    last = {(s.method, s.attribution, s.layer): s for s in evaluation.sanity if s.module is not None}
    return list(last.values())


def is_unchanged(stage: SanityStage) -> bool:
    """Whether a random network's map is still like the original one (see `UNCHANGED`)."""
    return mean_magnitude(stage) > UNCHANGED


def mean_magnitude(stage: SanityStage) -> float:
    """Mean |rank correlation| of a stage, without NaNs (as of constant maps); 0 if there is nothing else."""
    known = stage.spearman[~np.isnan(stage.spearman)]
    return float(np.abs(known).mean()) if known.size else 0.0


def _cautions(evaluation: Evaluation) -> list[str]:
    """Say what makes all other sentences weaker."""
    sentences = []
    n = len(evaluation.patch_rows)
    if n < FEW_PATCHES:
        sentences.append(
            f"Few patches ({n}): the intervals below are too narrow for so few, and with fewer than {FEWEST} "
            "no map is called better or worse. Take more with --patches before you choose."
        )
    probabilities = [row["probability"] for row in evaluation.patch_rows if "probability" in row]
    positive = sum(p > 0.5 for p in probabilities)
    if positive < len(probabilities) / 2:
        few = f"only {positive}" if positive else "none"
        sentences.append(
            f"On {few} of {len(probabilities)} patches does the classifier "
            "see the target (probability over one half). On the others insertion and deletion say little; "
            "--predicted-positive leaves them out."
        )
    if evaluation.facts.get("settings", {}).get("score_on") == "method":
        sentences.append(
            "Each method is scored on the classifier as it changes it (--score-on method): compare maps of "
            "one method, not methods."
        )
    return sentences


def _phase(compared: list[ScoreCard], evaluation: Evaluation) -> list[str]:
    """Say how steady each method's maps are, in the mean over attributions and layers."""
    means = {
        method: _mean(c.scores["phase_stability"].mean for c in compared if c.kind.method == method)
        for method in distinct(c.kind.method for c in compared)
    }
    if all(math.isnan(value) for value in means.values()):
        return []
    shown = ", ".join(f"{number(value, 2)} {with_method(method)}" for method, value in means.items())
    stride = f" ({evaluation.facts['total_stride']} px)" if "total_stride" in evaluation.facts else ""
    return [
        "Would a map be the same, had the tissue lain elsewhere in the patch? With the patch moved by less "
        f"than the network's total stride{stride}, and the map moved back, the correlation is, in the mean "
        f"over maps (1: the same map), {shown}. {_steady(list(means.values()))}"
    ]


def _smoothness(compared: list[ScoreCard]) -> list[str]:
    counts = []
    for method in distinct(c.kind.method for c in compared if "none" in c.against):
        differences = [c.against["none"]["total_variation"] for c in compared if c.kind.method == method]
        lower = sum(difference.verdict == "better" for difference in differences)
        counts.append(f"{lower} of {plural(len(differences), 'map')} {with_method(method)}")
    if not counts:
        return []
    return [
        f"Which methods make maps smoother? By total variation, {listing(counts)} are smoother than "
        "without. A smooth map is easier to read; whether it is true is another question."
    ]


def _predictions(evaluation: Evaluation) -> list[str]:
    seed = bootstrap_seed(evaluation)
    found = {m: summary(d, seed) for m, d in evaluation.prediction_difference.items() if d.any()}
    if not found:
        return []
    shown = listing([f"by {mean(s)} {interval(s)} with {method}" for method, s in found.items()])
    return [
        f"Do methods change what the classifier says? In the mean, the target's probability moves {shown}. "
        "Their maps explain the classifier as they change it; the other methods leave it as it is."
    ]


def _stability(evaluation: Evaluation) -> list[str]:
    methods = distinct(row.method for row in evaluation.stability)
    means = [
        (method, _mean(row.correlation for row in evaluation.stability if row.method == method))
        for method in methods
    ]
    if not means:
        return []
    shown = ", ".join(f"{number(value, 2)} {with_method(method)}" for method, value in means)
    return [
        "Does a slide's map depend on where the patches were cut? Correlation with the map of a moved grid, "
        f"in the mean (1: the same map): {shown}. {_steady([value for _, value in means])}"
    ]


def _steady(correlations: Sequence[float]) -> str:
    """Say what correlations of maps that should be the same mean."""
    if all(value >= STEADY for value in correlations):
        return f"From {number(STEADY, 1)} on, that is as good as the same map."
    return f"Below {number(STEADY, 1)}, a map shows where it was cut as well as the tissue."


def _sanity(evaluation: Evaluation) -> list[str]:
    last = fully_random(evaluation)
    if not last:
        return []
    flagged = [stage for stage in last if is_unchanged(stage)]
    worst = max(last, key=mean_magnitude)
    most = f"{number(mean_magnitude(worst), 2)} ({spoken(worst)})"
    asked = "Sanity: do the maps depend on what the classifier has learned?"
    if not flagged:
        return [
            f"{asked} Once the network is random, every map is another: rank correlation with the original "
            f"at most {most}. So they do."
        ]
    shown = some([spoken(stage) for stage in flagged])
    return [
        f"{asked} {len(flagged)} of {plural(len(last), 'map')} hardly changed when the network was made "
        f"random: rank correlation with the original up to {most}. Do not rely on {shown}: they show the "
        "picture, not what was learned."
    ]


def _localised(evaluation: Evaluation) -> list[str]:
    kinds = list(dict.fromkeys(row.kind for row in evaluation.localised))
    auroc = {k: _mean(row.auroc for row in evaluation.localised if row.kind == k) for k in kinds}
    maps = {kind: value for kind, value in auroc.items() if kind is not None and not math.isnan(value)}
    if not maps:
        return []
    best = max(maps, key=lambda kind: maps[kind])
    found = (
        f"Do the maps find the annotated regions? Best does {spoken(best)}: AUROC {number(maps[best], 3)} "
        "(0.5: by chance, 1: perfectly)."
    )
    baseline = auroc.get(None, math.nan)
    if math.isnan(baseline):
        return [found]
    meaning = (
        "So the map finds them no worse."
        if maps[best] >= baseline
        else "So regions are better found by these; a map shows what in them the classifier looks at."
    )
    return [f"{found} The classifier's own patch probabilities reach {number(baseline, 3)}. {meaning}"]


def _mean(numbers: Iterable[float]) -> float:
    """Mean of those that are no NaN; NaN if there is none."""
    known = [x for x in numbers if not math.isnan(x)]
    return sum(known) / len(known) if known else math.nan
