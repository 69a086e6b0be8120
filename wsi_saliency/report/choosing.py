"""Sentences on which map to choose: faithful, steady, better than what knows nothing of the classifier."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import numpy as np

from wsi_saliency.evaluation.rivals import (
    CONTROLS,
    FAITHFULNESS,
    HIGHER_IS_BETTER,
    bootstrap_seed,
    values,
)
from wsi_saliency.evaluation.statistics import FEWEST, VERDICTS, paired, verdict
from wsi_saliency.report.wording import (
    RIVAL_NAME,
    interval,
    listing,
    mean,
    number,
    plural,
    some,
    spoken,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from wsi_saliency.evaluation.measured import Evaluation, MapKind
    from wsi_saliency.evaluation.rivals import Metric, Rival, ScoreCard
    from wsi_saliency.evaluation.statistics import Verdict

_BLIND: tuple[Rival, ...] = ("random", "centred-gaussian")  # they look at no network
_SMOOTHED_OVER: tuple[Rival, ...] = ("none", "blurred-none")  # what smoothing has to beat
_FEW = 4  # maps of a choice
_QUESTION: dict[Metric, str] = {
    "insertion": "Which map finds what is enough for the classifier?",
    "deletion": "Which map finds what the classifier cannot do without?",
}
_EFFECT: dict[Metric, str] = {
    "insertion": "pixels put back in its order bring the target's probability up soonest",
    "deletion": "pixels taken away in its order bring the target's probability down soonest",
}


def choice(compared: list[ScoreCard]) -> list[str]:
    """Name the maps that no other surpasses in faithfulness and in phase stability at once."""
    known = [c for c in compared if c.scores["phase_stability"].n]
    fit = [c for c in known if not _enough([c]) or _beats_blind(c)]
    if not fit:
        return []
    front = sorted(front_of(fit), key=lambda c: -c.scores["faithfulness"].mean)
    few = [front[round(i)] for i in np.linspace(0, len(front) - 1, min(_FEW, len(front)))]
    shown = listing([f"{spoken(c.kind)} ({_both(c)})" for c in few])
    asked = "Which map to choose: faithful to the classifier, and steady wherever the tissue lies?"
    if len(front) == 1:
        return [f"{asked} {_capital(shown)}: no other map is more faithful, and none steadier."]
    counted = f", {len(few)} of {len(front)}" if len(few) < len(front) else ""
    return [
        f"{asked} No other map surpasses these in both, from the most faithful to the steadiest{counted}: "
        f"{shown}."
    ]


def front_of(compared: Sequence[ScoreCard]) -> list[ScoreCard]:
    """Return the maps for which no other is at least as faithful and as steady, and better in one of them."""
    at = [(c.scores["faithfulness"].mean, c.scores["phase_stability"].mean) for c in compared]
    return [
        c
        for c, here in zip(compared, at, strict=True)
        if not any(all(a >= b for a, b in zip(there, here, strict=True)) and there != here for there in at)
    ]


def _both(found: ScoreCard) -> str:
    faithful, steady = found.scores["faithfulness"], found.scores["phase_stability"]
    return f"insertion − deletion {number(faithful.mean)}, phase stability {number(steady.mean, 2)}"


def _beats_blind(found: ScoreCard) -> bool:
    """Whether a map is more faithful than those that know nothing of the classifier."""
    return all(
        found.against[rival]["faithfulness"].verdict == "better" for rival in _BLIND if rival in found.against
    )


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def best(compared: list[ScoreCard], metric: Metric, evaluation: Evaluation) -> str:
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


def _against_controls(found: ScoreCard, metric: Metric) -> list[str]:
    verdicts = {rival: found.against[rival][metric].verdict for rival in CONTROLS if rival in found.against}
    unbeaten = [RIVAL_NAME[rival] for rival, word in verdicts.items() if word != "better"]
    if not verdicts or not _enough([found]):
        return []
    if unbeaten:
        return [f"It is not shown to be better than {listing(unbeaten, 'or')}."]
    return [f"It is better than {listing([RIVAL_NAME[rival] for rival in verdicts])}."]


def _as_good(compared: list[ScoreCard], best: ScoreCard, metric: Metric, evaluation: Evaluation) -> list[str]:
    """Say which maps these patches cannot tell from the best one, which was chosen by the same patches."""
    of_kind = {scored.kind: values(scored, metric) for scored in evaluation.scored}
    seed, up = bootstrap_seed(evaluation), HIGHER_IS_BETTER[metric]
    others = [c.kind for c in compared if c is not best]
    differences = [paired(of_kind[kind], of_kind[best.kind], seed) for kind in others]
    tied = [k for k, d in zip(others, differences, strict=True) if verdict(d, higher_is_better=up) != "worse"]
    if not others:
        return []
    if not tied:
        return ["All others are worse." if len(others) > 1 else "The other is worse."]
    return [f"These patches cannot tell it from {_some_of(tied)}."]


def knowing(compared: list[ScoreCard]) -> list[str]:
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


def smoothing(compared: list[ScoreCard], method: str) -> list[str]:
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


def _counted(maps: Sequence[ScoreCard], rival: Rival) -> str:
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


def _overall(found: ScoreCard, rival: Rival) -> Verdict:
    """Better in insertion and deletion; worse in one and better in none; or undecided."""
    verdicts = {found.against[rival][metric].verdict for metric in FAITHFULNESS}
    if verdicts == {"better"}:
        return "better"
    return "worse" if "worse" in verdicts and "better" not in verdicts else "undecided"


def _enough(compared: Sequence[ScoreCard]) -> bool:
    """Whether there are patches enough to call a map better or worse."""
    return all(c.scores[metric].n >= FEWEST for c in compared for metric in FAITHFULNESS)


def _some_of(kinds: Sequence[MapKind]) -> str:
    return some([spoken(kind) for kind in kinds])
