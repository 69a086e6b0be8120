"""What an evaluation says to those who have to choose a map: what was asked, what came out, what it means.

The sentences are for readers who know tissue, not methods: each stands by itself.
"""

from __future__ import annotations

import math
from collections import Counter
from typing import TYPE_CHECKING

import numpy as np

from wsi_saliency.evaluation.comparison import (
    CONTROLS,
    FAITHFULNESS,
    HIGHER_IS_BETTER,
    bootstrap_seed,
    compare,
    distinct,
    values,
)
from wsi_saliency.evaluation.statistics import FEWEST, VERDICTS, paired, summary, verdict
from wsi_saliency.evaluation.wording import (
    RIVAL_NAME,
    interval,
    listing,
    mean,
    number,
    plural,
    spoken,
    with_method,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from wsi_saliency.evaluation.comparison import Compared, Metric, Rival
    from wsi_saliency.evaluation.results import Evaluation, MapKind, SanityStage
    from wsi_saliency.evaluation.statistics import Verdict

UNCHANGED = 0.5
"""A map whose rank correlation with that of a random network is above this, in magnitude and in the mean, is
not about what the network has learned. By chance, maps of 7 × 7 cells reach 0.1, and smooth ones 0.3."""

STEADY = 0.9
"""Correlation from which on two maps of the same tissue may be taken for the same map."""

FEW_PATCHES = 20
_NAMED = 4  # so many maps are named; of more, some of them and how many there are
_BLIND: tuple[Rival, ...] = ("random", "centred-gaussian")  # they look at no network
_SMOOTHED_OVER: tuple[Rival, ...] = ("none", "blurred-none")  # what smoothing has to beat
_QUESTION: dict[Metric, str] = {
    "insertion": "Which map finds what is enough for the classifier?",
    "deletion": "Which map finds what the classifier cannot do without?",
}
_EFFECT: dict[Metric, str] = {
    "insertion": "pixels put back in its order bring the target's probability up soonest",
    "deletion": "pixels taken away in its order bring the target's probability down soonest",
}


def findings(evaluation: Evaluation) -> list[str]:
    """Say what was found: cautions, then questions with their answers, the most important first.

    No name of a slide occurs in them, so they can be printed anywhere.
    """
    compared = [c for c in compare(evaluation) if not c.kind.control]
    return [
        *_cautions(evaluation),
        *_choice(compared),
        *(_best(compared, metric, evaluation) for metric in FAITHFULNESS if compared),
        *_knowing(compared),
        *(s for method in distinct(c.kind.method for c in compared) for s in _smoothing(compared, method)),
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
        sentences.append(
            f"On only {positive} of {len(probabilities)} patches does the classifier see the target "
            "(probability over one half). On the others insertion and deletion say little; "
            "--predicted-positive leaves them out."
        )
    if evaluation.facts.get("settings", {}).get("score_on") == "method":
        sentences.append(
            "Each method is scored on the classifier as it changes it (--score-on method): compare maps of "
            "one method, not methods."
        )
    return sentences


def _choice(compared: list[Compared]) -> list[str]:
    """Name the maps that no other surpasses in faithfulness and in phase stability at once."""
    known = [c for c in compared if c.scores["phase_stability"].n]
    fit = [c for c in known if not _enough([c]) or _beats_blind(c)]
    if not fit:
        return []
    front = sorted(front_of(fit), key=lambda c: -c.scores["faithfulness"].mean)
    shown = _some([f"{spoken(c.kind)} ({_both(c)})" for c in front])
    asked = "Which map to choose: faithful to the classifier, and steady wherever the tissue lies?"
    if len(front) == 1:
        return [f"{asked} {_capital(shown)}: no other map is more faithful, and none steadier."]
    return [
        f"{asked} From the most faithful to the steadiest: {shown}. Instead of any other map, take one of "
        "these, which is better in both."
    ]


def front_of(compared: Sequence[Compared]) -> list[Compared]:
    """Return the maps for which no other is at least as faithful and as steady, and better in one of them."""
    at = [(c.scores["faithfulness"].mean, c.scores["phase_stability"].mean) for c in compared]
    return [
        c
        for c, here in zip(compared, at, strict=True)
        if not any(all(a >= b for a, b in zip(there, here, strict=True)) and there != here for there in at)
    ]


def _both(found: Compared) -> str:
    faithful, steady = found.scores["faithfulness"], found.scores["phase_stability"]
    return f"insertion − deletion {number(faithful.mean)}, phase stability {number(steady.mean, 2)}"


def _beats_blind(found: Compared) -> bool:
    """Whether a map is more faithful than those that know nothing of the classifier."""
    return all(
        found.against[rival]["faithfulness"].verdict == "better" for rival in _BLIND if rival in found.against
    )


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _best(compared: list[Compared], metric: Metric, evaluation: Evaluation) -> str:
    """Name the map with the best mean, the controls that it does not beat, and how many others come near."""
    up = HIGHER_IS_BETTER[metric]
    best = (max if up else min)(compared, key=lambda c: c.scores[metric].mean)
    score = best.scores[metric]
    sentences = [
        f"{_QUESTION[metric]} Of {plural(len(compared), 'map')}, {spoken(best.kind)}: {_EFFECT[metric]} "
        f"({metric} {mean(score)} {interval(score)}; {'higher' if up else 'lower'} is better).",
        *_against_controls(best, metric),
        *_as_good(compared, best, metric, evaluation),
    ]
    return " ".join(sentences)


def _against_controls(found: Compared, metric: Metric) -> list[str]:
    verdicts = {rival: found.against[rival][metric].verdict for rival in CONTROLS if rival in found.against}
    unbeaten = [RIVAL_NAME[rival] for rival, word in verdicts.items() if word != "better"]
    if not verdicts or not _enough([found]):
        return []
    if unbeaten:
        return [f"It is not shown to be better than {listing(unbeaten, 'or')}."]
    return [f"It is better than {listing([RIVAL_NAME[rival] for rival in verdicts])}."]


def _as_good(compared: list[Compared], best: Compared, metric: Metric, evaluation: Evaluation) -> list[str]:
    """Say which maps these patches cannot tell from the best one, which was chosen by the same patches."""
    of_kind = {scored.kind: values(scored, metric) for scored in evaluation.scored}
    seed, up = bootstrap_seed(evaluation), HIGHER_IS_BETTER[metric]
    others = [c.kind for c in compared if c is not best]
    differences = [paired(of_kind[kind], of_kind[best.kind], seed) for kind in others]
    tied = [k for k, d in zip(others, differences, strict=True) if verdict(d, up) != "worse"]
    if not others:
        return []
    if not tied:
        return ["All others are worse." if len(others) > 1 else "The other is worse."]
    return [f"These patches cannot tell it from {_some_of(tied)}."]


def _knowing(compared: list[Compared]) -> list[str]:
    """Set all maps against those that know nothing of the classifier."""
    blind = [rival for rival in _BLIND if all(rival in c.against for c in compared)]
    if not compared or not blind or not _enough(compared):
        return []
    failed = [c.kind for c in compared if any(_overall(c, rival) != "better" for rival in blind)]
    names = listing([RIVAL_NAME[rival] for rival in blind])
    return [
        f"Do the maps know anything of the classifier? {_capital(names)} do not. By insertion "
        f"and deletion, {len(compared) - len(failed)} of {plural(len(compared), 'map')} beat both. "
        + (f"Do not rely on {_some_of(failed)}." if failed else "So they do.")
    ]


def _smoothing(compared: list[Compared], method: str) -> list[str]:
    """Set a method's maps against those without smoothing, and against blurs that are as smooth."""
    maps = [c for c in compared if c.kind.method == method and all(r in c.against for r in _SMOOTHED_OVER)]
    if not maps or not _enough(maps):
        return []
    against = {rival: Counter(_overall(c, rival) for c in maps) for rival in _SMOOTHED_OVER}
    shown = [f"against {RIVAL_NAME[rival]}, {_counted(maps, rival)}" for rival in _SMOOTHED_OVER]
    return [
        f"Does {method} make maps more faithful? By insertion and deletion, {'; '.join(shown)}. "
        f"{_meaning(against['none'], against['blurred-none'])}"
    ]


def _counted(maps: Sequence[Compared], rival: Rival) -> str:
    """Say how often each verdict fell; for a single map, which, and by how much."""
    verdicts = Counter(_overall(c, rival) for c in maps)
    if len(maps) > 1:
        return f"of {len(maps)} maps " + ", ".join(
            f"{n} {word}" for word in VERDICTS if (n := verdicts[word])
        )
    differences = [(metric, maps[0].against[rival][metric].summary) for metric in FAITHFULNESS]
    shown = ", ".join(f"{metric} {mean(d, signed=True)} {interval(d)}" for metric, d in differences)
    return f"{next(iter(verdicts))} ({shown})"


def _meaning(plain: Counter[Verdict], blur: Counter[Verdict]) -> str:
    """Say what a method's verdicts, against no smoothing and against a blur, mean for its choice."""
    if plain["worse"] > plain["better"]:
        return "So it costs faithfulness: choose it for a steadier map only."
    if not plain["better"]:
        return "So no gain or cost shows on these patches: choose by how steady the map is."
    gain = f"So it makes {'some ' if plain['better'] < plain.total() else ''}maps more faithful"
    if blur["better"] > blur["worse"]:
        return f"{gain}, and more than a blur does."
    return f"{gain}, but a plain blur does as much."


def _overall(found: Compared, rival: Rival) -> Verdict:
    """Better in insertion and deletion; worse in one and better in none; or undecided."""
    verdicts = {found.against[rival][metric].verdict for metric in FAITHFULNESS}
    if verdicts == {"better"}:
        return "better"
    return "worse" if "worse" in verdicts and "better" not in verdicts else "undecided"


def _enough(compared: Sequence[Compared]) -> bool:
    """Whether there are patches enough to call a map better or worse."""
    return all(c.scores[metric].n >= FEWEST for c in compared for metric in FAITHFULNESS)


def _some_of(kinds: Sequence[MapKind]) -> str:
    return _some([spoken(kind) for kind in kinds])


def _some(names: Sequence[str]) -> str:
    """List names; of many, the first few, and how many more there are."""
    if len(names) <= _NAMED:
        return listing(names)
    return listing([*names[: _NAMED - 1], f"{len(names) - _NAMED + 1} more"])


def _phase(compared: list[Compared], evaluation: Evaluation) -> list[str]:
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


def _smoothness(compared: list[Compared]) -> list[str]:
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
    most = f"{number(mean_magnitude(worst), 2)} ({_sanity_name(worst)})"
    asked = "Sanity: do the maps depend on what the classifier has learned?"
    if not flagged:
        return [
            f"{asked} Once the network is random, every map is another: rank correlation with the original "
            f"at most {most}. So they do."
        ]
    shown = _some([_sanity_name(stage) for stage in flagged])
    return [
        f"{asked} {len(flagged)} of {plural(len(last), 'map')} hardly changed when the network was made "
        f"random: rank correlation with the original up to {most}. Do not rely on {shown}: they show the "
        "picture, not what was learned."
    ]


def _sanity_name(stage: SanityStage) -> str:
    return f"{stage.attribution} at {stage.layer} {with_method(stage.method)}"


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
