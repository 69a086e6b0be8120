"""What an evaluation says, in sentences: which map is best, and where a method does not beat its controls."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from wsi_saliency.evaluation.comparison import (
    CONTROLS,
    FAITHFULNESS,
    HIGHER_IS_BETTER,
    RIVALS,
    bootstrap_seed,
    compare,
    distinct,
    values,
)
from wsi_saliency.evaluation.statistics import FEWEST, paired, summary, verdict
from wsi_saliency.evaluation.wording import (
    METRIC_NAME,
    RIVAL_NAME,
    interval,
    listing,
    map_name,
    mean,
    number,
    plural,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

    from wsi_saliency.evaluation.comparison import Compared, Difference, Metric, Rival
    from wsi_saliency.evaluation.results import Evaluation, SanityStage

UNCHANGED = 0.5
"""A map whose rank correlation with that of a random network is above this, in magnitude and in the mean, is
not about what the network has learned. By chance, maps of 7 × 7 cells reach 0.1, and smooth ones 0.3."""

FEW_PATCHES = 20
_FEW = 1  # so many maps of one method that fail are named, with the difference; more are counted
_NAMED = 4  # so many maps that do not change are named


def findings(evaluation: Evaluation) -> list[str]:
    """Say what was found, a sentence or two each, the most important first.

    No name of a slide occurs in them, so they can be printed anywhere.
    """
    compared = [c for c in compare(evaluation) if not c.kind.control]
    return [
        *_cautions(evaluation),
        *(_best(compared, metric, evaluation) for metric in FAITHFULNESS if compared),
        *(s for method in distinct(c.kind.method for c in compared) for s in _of_method(compared, method)),
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
            f"Few patches ({n}): their intervals are too narrow, and below {FEWEST} there is no verdict; "
            "more come with --patches."
        )
    probabilities = [row["probability"] for row in evaluation.patch_rows if "probability" in row]
    positive = sum(p > 0.5 for p in probabilities)
    if positive < len(probabilities) / 2:
        sentences.append(
            f"On only {positive} of {len(probabilities)} patches is the target's probability over one half; "
            "on the others insertion and deletion say little (--predicted-positive leaves them out)."
        )
    if evaluation.facts.get("settings", {}).get("score_on") == "method":
        sentences.append("Each method is scored on the network as it changes it, so methods do not compare.")
    return sentences


def _best(compared: list[Compared], metric: Metric, evaluation: Evaluation) -> str:
    """Name the map with the best mean, the controls that it does not beat, and how many others come near."""
    up = HIGHER_IS_BETTER[metric]
    best = (max if up else min)(compared, key=lambda c: c.scores[metric].mean)
    score = best.scores[metric]
    sentences = [
        f"{'Highest' if up else 'Lowest'} {METRIC_NAME[metric]}: {best.kind.label}, {mean(score)} "
        f"{interval(score)}.",
        *_against_controls(best, metric),
        *_as_good(compared, best, metric, evaluation),
    ]
    return " ".join(sentences)


def _against_controls(found: Compared, metric: Metric) -> list[str]:
    verdicts = {rival: found.against[rival][metric].verdict for rival in CONTROLS if rival in found.against}
    unbeaten = [RIVAL_NAME[rival] for rival, word in verdicts.items() if word != "better"]
    if unbeaten:
        return [f"It is not better than {listing(unbeaten)}."]
    return ["It is better than all its controls."] if verdicts else []


def _as_good(compared: list[Compared], best: Compared, metric: Metric, evaluation: Evaluation) -> list[str]:
    """Say how many maps these patches cannot tell from the best one, which was chosen by the same patches."""
    of_kind = {scored.kind: values(scored, metric) for scored in evaluation.scored}
    seed, up = bootstrap_seed(evaluation), HIGHER_IS_BETTER[metric]
    others = [c.kind for c in compared if c is not best]
    differences = [paired(of_kind[kind], of_kind[best.kind], seed) for kind in others]
    tied = [k.label for k, d in zip(others, differences, strict=True) if verdict(d, up) != "worse"]
    if not others:
        return []
    if not tied:
        return [f"All {len(others)} other maps are worse." if len(others) > 1 else "The other map is worse."]
    if len(tied) == 1:
        return [f"{tied[0]} cannot be told from it."]
    return [f"{len(tied)} of the other {len(others)} maps cannot be told from it."]


def _of_method(compared: list[Compared], method: str) -> list[str]:
    """Set a method's maps against each rival: those that it beats everywhere, and where it fails."""
    maps = [c for c in compared if c.kind.method == method]
    beaten, failed = [], []
    for rival in RIVALS:
        against = [c for c in maps if rival in c.against]
        where = [words for metric in FAITHFULNESS if (words := _failures(against, rival, metric))]
        if where:
            failed.append(f"{RIVAL_NAME[rival]}: {', '.join(where)}")
        elif against:
            beaten.append(RIVAL_NAME[rival])
    subject = f"All {len(maps)} maps of {method} are" if len(maps) > 1 else f"{maps[0].kind.label} is"
    sentences = [f"{subject} better than {listing(beaten)}, in insertion and deletion."] if beaten else []
    name = method if len(maps) > 1 else maps[0].kind.label
    return sentences + ([f"{name} does not beat {'; '.join(failed)}."] if failed else [])


def _failures(against: list[Compared], rival: Rival, metric: Metric) -> str:
    """Say where a metric is not better than a rival's: the maps if they are few, else how many."""
    failures = [c for c in against if c.against[rival][metric].verdict != "better"]
    if not failures:
        return ""
    if len(against) > 1 and len(failures) > _FEW:
        worse = sum(c.against[rival][metric].verdict == "worse" for c in failures)
        counted = f" ({worse} of them worse)" if worse else ""
        return f"{METRIC_NAME[metric]} on {len(failures)} of {len(against)} maps{counted}"
    shown = [_difference(c, c.against[rival][metric], named=len(against) > 1) for c in failures]
    return f"{METRIC_NAME[metric]} {'on ' if len(against) > 1 else ''}{listing(shown)}"


def _difference(found: Compared, difference: Difference, *, named: bool) -> str:
    shown = f"{mean(difference.summary, signed=True)} {interval(difference.summary)}"
    return f"{map_name(found.kind)} ({shown})" if named else shown


def _smoothness(compared: list[Compared]) -> list[str]:
    counts = []
    for method in distinct(c.kind.method for c in compared if "none" in c.against):
        differences = [c.against["none"]["total_variation"] for c in compared if c.kind.method == method]
        lower = sum(difference.verdict == "better" for difference in differences)
        counts.append(f"{method} on {lower} of {plural(len(differences), 'map')}")
    return [f"Total variation is lower than the plain map's: {listing(counts)}."] if counts else []


def _predictions(evaluation: Evaluation) -> list[str]:
    seed = bootstrap_seed(evaluation)
    found = {m: summary(d, seed) for m, d in evaluation.prediction_difference.items() if d.any()}
    shown = listing([f"{method} ({mean(s)} {interval(s)})" for method, s in found.items()])
    return [f"The target's probability is changed, in the mean, by {shown}."] if found else []


def _stability(evaluation: Evaluation) -> list[str]:
    methods = distinct(row.method for row in evaluation.stability)
    means = [
        (method, _mean(row.correlation for row in evaluation.stability if row.method == method))
        for method in methods
    ]
    shown = ", ".join(f"{method} {number(value, 2)}" for method, value in means)
    return [f"Correlation of a slide's map with that of a moved grid, in the mean: {shown}."] if means else []


def _sanity(evaluation: Evaluation) -> list[str]:
    last = fully_random(evaluation)
    if not last:
        return []
    flagged = [stage for stage in last if is_unchanged(stage)]
    worst = max(last, key=mean_magnitude)
    most = f"{number(mean_magnitude(worst), 2)} ({_sanity_name(worst)})"
    if not flagged:
        return [
            f"Sanity: every map changes when the network is made random; rank correlation at most {most}."
        ]
    names = [_sanity_name(stage) for stage in flagged]
    shown = listing(names if len(names) <= _NAMED else [*names[:_NAMED], f"{len(names) - _NAMED} more"])
    return [
        f"Sanity: {len(flagged)} of {plural(len(last), 'map')} hardly changed when the network was made "
        f"random, so they are not about what it has learned: {shown}; rank correlation up to {most}."
    ]


def _sanity_name(stage: SanityStage) -> str:
    return f"{stage.method} · {stage.attribution} · {stage.layer}"


def _localised(evaluation: Evaluation) -> list[str]:
    kinds = list(dict.fromkeys(row.kind for row in evaluation.localised))
    auroc = {k: _mean(row.auroc for row in evaluation.localised if row.kind == k) for k in kinds}
    maps = {kind: value for kind, value in auroc.items() if kind is not None and not math.isnan(value)}
    if not maps:
        return []
    best = max(maps, key=lambda kind: maps[kind])
    probabilities = f"; the patch probabilities reach {number(auroc[None], 3)}" if None in auroc else ""
    return [
        f"Annotated regions are found best by {best.label}: AUROC {number(maps[best], 3)}{probabilities}."
    ]


def _mean(numbers: Iterable[float]) -> float:
    """Mean of those that are no NaN; NaN if there is none."""
    known = [x for x in numbers if not math.isnan(x)]
    return sum(known) / len(known) if known else math.nan
