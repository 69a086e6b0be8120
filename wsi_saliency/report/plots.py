"""Pictures of an evaluation: curves, scores by layer, examples, and what else was asked for.

Bars and bands are the 95 % intervals of `statistics`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from wsi_saliency.evaluation.rivals import (
    FAITHFULNESS,
    HIGHER_IS_BETTER,
    bootstrap_seed,
    deepest_last,
    distinct,
    values,
)
from wsi_saliency.evaluation.statistics import band, summary
from wsi_saliency.report.findings import STEADY, UNCHANGED
from wsi_saliency.report.panels import (
    CONTROL_COLOUR,
    CONTROL_DASH,
    Look,
    chunks,
    name_points,
    name_ticks,
    panels_of,
    points,
    same_heights,
    same_widths,
    shared_legend,
    style,
)
from wsi_saliency.report.sheet import examples
from wsi_saliency.report.wording import method_name, stage_name

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from wsi_saliency.evaluation.measured import Evaluation, KindScores, Stability
    from wsi_saliency.evaluation.rivals import Metric

    Facets = dict[tuple[str, Metric], Axes]

_NEAR = 0.12  # between methods at one layer, in layers


@dataclass(frozen=True)
class Plot:
    """A picture with its file's name (without ending), its heading, and sentences that explain it."""

    name: str
    title: str
    caption: str
    figure: Figure


def plots(evaluation: Evaluation) -> list[Plot]:
    """Draw all pictures that there are figures for."""
    with style():
        return [
            Plot(name, title, caption, draw(evaluation))
            for name, title, caption, draw, there_is in _PLOTS
            if there_is(evaluation)
        ]


def scores_by_layer(evaluation: Evaluation) -> Figure:
    """Draw the areas under the insertion and deletion curves, from the input to the deepest layer."""
    figure, panels = _facets(evaluation, FAITHFULNESS, 3.3)
    for (attribution, metric), axes in panels.items():
        _by_layer(axes, evaluation, attribution, metric)
        _blurred(axes, evaluation, attribution, metric)
        for scored in _free_controls(evaluation):
            level, name = float(np.mean(values(scored, metric))), scored.kind.label
            axes.axhline(level, color=CONTROL_COLOUR, linestyle=CONTROL_DASH[name], linewidth=1.5, label=name)
        better = "higher" if HIGHER_IS_BETTER[metric] else "lower"
        axes.set(title=f"{attribution}: {metric}", ylabel=f"area ({better} is better)")
    for metric in FAITHFULNESS:
        same_heights([axes for key, axes in panels.items() if key[1] == metric])
    shared_legend(figure, panels.values())
    return figure


def curves(evaluation: Evaluation) -> Figure:
    """Draw insertion and deletion curves of each method at its best layer, and of two controls."""
    figure, panels = _facets(evaluation, FAITHFULNESS, 4.4)
    look, seed = _look(evaluation), bootstrap_seed(evaluation)
    for (attribution, metric), axes in panels.items():
        for method in look.methods:
            if best := _best_layer(evaluation, method, attribution, metric):
                label = f"{method}, {best.kind.layer}"
                _curve(axes, best, metric, seed, color=look.colour(method), label=label)
        for scored in _free_controls(evaluation):
            dash, label = CONTROL_DASH[scored.kind.label], scored.kind.label
            _curve(axes, scored, metric, seed, color=CONTROL_COLOUR, label=label, linestyle=dash)
        axes.set(title=f"{attribution}: {metric}", xlim=(0, 100), ylim=(0, 1))
        axes.set_xlabel(f"pixels {'inserted' if metric == 'insertion' else 'deleted'} (% of the steps)")
        axes.set_ylabel("probability of the target")
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.17), ncols=2, columnspacing=1.2)
    return figure


def smoothness_by_layer(evaluation: Evaluation) -> Figure:
    """Draw total variation, from the input to the deepest layer."""
    figure, panels = _facets(evaluation, ("total_variation",), 3.3)
    for (attribution, metric), axes in panels.items():
        _by_layer(axes, evaluation, attribution, metric)
        axes.set(title=attribution, ylabel="total variation (lower is smoother)")
        axes.set_ylim(bottom=0)
    same_heights(list(panels.values()))
    shared_legend(figure, panels.values())
    return figure


def faithfulness_by_stability(evaluation: Evaluation) -> Figure:
    """Draw faithfulness against phase stability, a point for each map; maps of one layer are joined."""
    attributions = distinct(s.kind.attribution for s in _steadied(evaluation))
    figure, panels = panels_of([[attribution] for attribution in attributions], 4.2)
    look, controls = _look(evaluation), _free_controls(evaluation)
    begins: dict[str, dict[str, tuple[float, float]]] = {}
    for attribution, axes in panels.items():
        maps = [s for s in _steadied(evaluation) if s.kind.attribution == attribution]
        begins[attribution] = _paths(axes, [s for s in maps if not s.kind.control])
        for scored in maps:
            _point(axes, scored, look)
        axes.axvline(STEADY, color=CONTROL_COLOUR, linewidth=0.8)
        for scored in controls:
            level, name = float(np.mean(scored.faithfulness)), scored.kind.label
            axes.axhline(level, color=CONTROL_COLOUR, linestyle=CONTROL_DASH[name], linewidth=1.5, label=name)
        axes.set(title=attribution, ylabel="insertion − deletion", xlabel="phase stability (1: the same map)")
    same_heights(list(panels.values()))
    same_widths(list(panels.values()))
    for attribution, axes in panels.items():
        name_points(axes, begins[attribution])
    shared_legend(figure, panels.values())
    return figure


def _steadied(evaluation: Evaluation) -> list[KindScores]:
    """Return the maps whose phase stability is known."""
    return [s for s in evaluation.scored if not np.isnan(s.phase_stability).all()]


def _place(scored: KindScores) -> tuple[float, float]:
    return float(np.nanmean(scored.phase_stability)), float(np.mean(scored.faithfulness))


def _paths(axes: Axes, maps: list[KindScores]) -> dict[str, tuple[float, float]]:
    """Join each layer's maps, from the least steady; return where each line begins."""
    begins = {}
    for layer in distinct(s.kind.layer for s in maps):
        places = sorted(_place(s) for s in maps if s.kind.layer == layer)
        axes.plot(*zip(*places, strict=True), color="#c2c2cb", linewidth=1, zorder=1)
        begins[layer] = places[0]
    return begins


def _point(axes: Axes, scored: KindScores, look: Look) -> None:
    """Draw a method's map; hollow: the plain map, blurred until it is as smooth."""
    method, hollow = scored.kind.method or "", scored.kind.control is not None
    axes.plot(
        *_place(scored),
        linestyle="",
        marker=look.marker(method),
        markersize=5 if hollow else 8,
        markerfacecolor="white" if hollow else look.colour(method),
        color=look.colour(method),
        label=method_name(scored.kind),
    )


def stability(evaluation: Evaluation) -> Figure:
    """Draw grid stability by overlap: each method's mean over slides as a bar, each slide as a dot."""
    places = [(row.attribution, row.layer) for row in evaluation.stability]
    figure, panels = panels_of(_rows(places), 3.3)
    look = _look(evaluation)
    for place, axes in panels.items():
        rows = [row for row in evaluation.stability if (row.attribution, row.layer) == place]
        _stability_bars(axes, rows, look)
        axes.set(title=" · ".join(place), xlabel="overlap of neighbouring patches", ylabel="correlation")
        axes.set_ylim(top=1)
    shared_legend(figure, panels.values())
    return figure


def sanity(evaluation: Evaluation) -> Figure:
    """Draw the rank correlation of maps with the original ones, as the network is made random."""
    places = [(stage.attribution, stage.layer) for stage in evaluation.sanity]
    figure, panels = panels_of(_rows(places), 3.5)
    look, seed = _look(evaluation), bootstrap_seed(evaluation)
    for place, axes in panels.items():
        here = [stage for stage in evaluation.sanity if (stage.attribution, stage.layer) == place]
        stages = distinct(stage_name(stage) for stage in here)
        for method in distinct(stage.method for stage in here):
            own = [stage for stage in here if stage.method == method]
            at = [stages.index(stage_name(stage)) + look.dodge(method, _NEAR) for stage in own]
            points(axes, at, [summary(stage.spearman, seed) for stage in own], look, method)
        axes.axhspan(UNCHANGED, 1.05, color="#f4ead6", zorder=0)
        axes.axhline(0, color=CONTROL_COLOUR, linewidth=0.8)
        axes.set(title=" · ".join(place), ylabel="rank correlation")
        axes.set_ylim(top=1.05)
        name_ticks(axes, stages)
    shared_legend(figure, panels.values())
    return figure


def _facets(evaluation: Evaluation, metrics: Sequence[Metric], height: float) -> tuple[Figure, Facets]:
    """Make panels: attributions side by side and metrics below each other, or a single one's side by side."""
    attributions = distinct(scored.kind.attribution for scored in evaluation.scored)
    if len(attributions) == 1:
        return panels_of([[(attributions[0], metric) for metric in metrics]], height)
    rows = [[(a, metric) for a in row] for row in chunks(attributions) for metric in metrics]
    return panels_of(rows, height)


def _rows(places: list[tuple[str, str]]) -> list[list[tuple[str, str]]]:
    """Put a layer's attributions side by side, and layers below each other if both are several."""
    keys = list(dict.fromkeys(places))
    layers = [[key for key in keys if key[1] == layer] for layer in distinct(key[1] for key in keys)]
    if all(len(row) == 1 for row in layers):
        return chunks(keys)
    return [row for layer in layers for row in chunks(layer)]


def _look(evaluation: Evaluation) -> Look:
    methods: list[str | None] = [scored.kind.method for scored in evaluation.scored]
    methods += [row.method for row in evaluation.stability] + [stage.method for stage in evaluation.sanity]
    return Look(distinct(methods))


def _free_controls(evaluation: Evaluation) -> list[KindScores]:
    """Return the controls that belong to no method: the same for all layers and attributions."""
    return [s for s in evaluation.scored if s.kind.control in CONTROL_DASH]


def _maps(
    evaluation: Evaluation, method: str, attribution: str, control: str | None = None
) -> list[KindScores]:
    return [
        s
        for s in evaluation.scored
        if (s.kind.method, s.kind.attribution, s.kind.control) == (method, attribution, control)
    ]


def _best_layer(evaluation: Evaluation, method: str, attribution: str, metric: Metric) -> KindScores | None:
    best = max if HIGHER_IS_BETTER[metric] else min
    maps = _maps(evaluation, method, attribution)
    return best(maps, key=lambda s: float(np.mean(values(s, metric))), default=None)


def _curve(
    axes: Axes, scored: KindScores, metric: Metric, seed: int, color: str, label: str, linestyle: object = "-"
) -> None:
    found = band(getattr(scored, f"{metric}_curves"), seed)
    at = np.linspace(0, 100, len(found.mean))
    axes.plot(at, found.mean, color=color, label=label, linestyle=linestyle)
    axes.fill_between(at, found.low, found.high, color=color, alpha=0.15, linewidth=0)


def _by_layer(axes: Axes, evaluation: Evaluation, attribution: str, metric: Metric) -> None:
    """Draw a line per method over all layers of the evaluation."""
    layers = deepest_last(s.kind for s in evaluation.scored)
    reductions = {s.kind.layer: s.kind.reduction for s in evaluation.scored}
    look, seed = _look(evaluation), bootstrap_seed(evaluation)
    for method in look.methods:
        maps = sorted(_maps(evaluation, method, attribution), key=lambda s: layers.index(s.kind.layer or ""))
        at = [layers.index(s.kind.layer or "") + look.dodge(method, _NEAR) for s in maps]
        if maps:
            points(axes, at, [summary(values(s, metric), seed) for s in maps], look, method)
    name_ticks(axes, [f"{layer}\n1/{reductions[layer]}" for layer in layers])


def _blurred(axes: Axes, evaluation: Evaluation, attribution: str, metric: Metric) -> None:
    """Draw the blurred plain map that each method has to beat: a hollow marker beside its own."""
    layers = deepest_last(s.kind for s in evaluation.scored)
    look = _look(evaluation)
    for method in look.methods:
        maps = [s for s in _maps(evaluation, method, attribution, "blurred-none") if s.kind.layer in layers]
        at = [layers.index(s.kind.layer or "") + look.dodge(method, _NEAR) + _NEAR / 2 for s in maps]
        means = [float(np.mean(values(s, metric))) for s in maps]
        if maps:
            axes.plot(
                at,
                means,
                linestyle="",
                marker=look.marker(method),
                markerfacecolor="white",
                color=look.colour(method),
                label=method_name(maps[0].kind),
            )


def _stability_bars(axes: Axes, rows: list[Stability], look: Look) -> None:
    overlaps = sorted({row.overlap for row in rows})
    width = 0.8 / len(look.methods)
    for method in distinct(row.method for row in rows):
        own = [[r.correlation for r in rows if (r.method, r.overlap) == (method, o)] for o in overlaps]
        at = np.arange(len(overlaps)) + look.dodge(method, width)
        axes.bar(
            at,
            [_mean(found) for found in own],
            0.9 * width,
            color=look.colour(method),
            label=method,
            alpha=0.85,
        )
        for x, found in zip(at, own, strict=True):
            axes.plot([x] * len(found), found, ".", color="white", markeredgecolor="#2b2b33", markersize=7)
    name_ticks(axes, [f"{overlap:g}" for overlap in overlaps])


def _mean(numbers: list[float]) -> float:
    known = np.asarray(numbers)[~np.isnan(numbers)]
    return float(known.mean()) if known.size else np.nan


_PLOTS: tuple[tuple[str, str, str, Callable[[Evaluation], Figure], Callable[[Evaluation], bool]], ...] = (
    (
        "choice",
        "Faithfulness against stability",
        "A point for each map: the further up, the more faithful; the further right, the less it depends on "
        "where the tissue lay in the patch. A grey line joins the methods of one layer, whose name stands at "
        "the least steady of them. Hollow markers are the map without smoothing, blurred until it is as "
        "smooth as the method's. Dashed: maps that know nothing of the classifier. Vertical: correlation "
        f"{STEADY:g}. Choose at the upper right.",
        faithfulness_by_stability,
        lambda e: bool(_steadied(e)),
    ),
    (
        "scores",
        "Faithfulness by layer and method",
        "Areas under the insertion and deletion curves, from the input to the deepest layer (below each "
        "name: its resolution). Bars are 95 % intervals of the mean over patches. Hollow markers are the map "
        "without smoothing, blurred until it is as smooth as the method's: a method is worth having where it "
        "beats that.",
        scores_by_layer,
        lambda e: True,
    ),
    (
        "curves",
        "Insertion and deletion curves",
        "Each method at its best layer, with two maps that know nothing of the classifier. Bands are 95 % "
        "intervals of the mean at each step.",
        curves,
        lambda e: True,
    ),
    (
        "total-variation",
        "Smoothness by layer and method",
        "Total variation of each map, with 95 % intervals. Smoothness alone says nothing about faithfulness.",
        smoothness_by_layer,
        lambda e: True,
    ),
    (
        "examples",
        "Examples",
        "Patches with the target's probability p, and their maps. Each map has its own scale around 0, up to "
        "the 99th percentile of its magnitude; a plain gradient is shown by its magnitude, as it is ranked.",
        examples,
        lambda e: any(example.maps for example in e.examples),
    ),
    (
        "stability",
        "Grid stability",
        "Correlation, in tissue, of a slide's map with that of a grid moved by half a stride: bars are means "
        "over slides, dots are slides. A map that changes with the grid says little about the tissue.",
        stability,
        lambda e: bool(e.stability),
    ),
    (
        "sanity",
        "Sanity: does the map depend on what was learned?",
        "Rank correlation with the original map while the network is made random, from the head downwards. "
        "At the right end nothing learned is left; a map that is still in the shaded range there is not "
        "about the classifier.",
        sanity,
        lambda e: bool(e.sanity),
    ),
)

PICTURES = tuple(name for name, *_ in _PLOTS)
