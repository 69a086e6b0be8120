"""The tables of an evaluation."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from wsi_saliency.evaluation.rivals import METRICS, RIVALS, bootstrap_seed, compared_metrics
from wsi_saliency.evaluation.statistics import summary
from wsi_saliency.report.findings import fully_random, is_unchanged
from wsi_saliency.report.parts import (
    Cell,
    Column,
    Group,
    Mark,
    Row,
    Table,
    difference_cell,
    mean_cell,
    number_cell,
    words,
)
from wsi_saliency.report.wording import METRIC_NAME, RIVAL_NAME, method_name, stage_name

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from wsi_saliency.evaluation.measured import Evaluation, Floats, Localisation, SanityStage
    from wsi_saliency.evaluation.rivals import Metric, Rival, ScoreCard

_SORTED_BY: Metric = "insertion"
_SHOWN_AGAINST: tuple[Metric, ...] = ("insertion", "deletion", "phase_stability")
_UNCHANGED = Mark("✗", "worse", "unchanged")


def scores(compared: Sequence[ScoreCard]) -> Table:
    """List all maps with their scores and their differences from each rival, the best insertion first."""
    shown = [metric for metric in METRICS if any(c.scores[metric].n for c in compared)]
    against = {
        rival: [m for m in _SHOWN_AGAINST if m in shown and m in compared_metrics(rival)] for rival in RIVALS
    }
    columns = [*_texts("Method", "Attribution", "Layer"), Column("Scale", numeric=True)]
    groups = [
        Group("", len(columns)),
        Group("Scores", len(shown)),
        *(Group(f"Against {RIVAL_NAME[rival]}", len(metrics)) for rival, metrics in against.items()),
    ]
    columns += _of_metrics(shown, sorted_by=_SORTED_BY)
    columns += [column for metrics in against.values() for column in _of_metrics(metrics)]
    ordered = sorted(compared, key=lambda c: c.scores[_SORTED_BY].mean, reverse=True)
    return Table("scores-rows", columns, [_score_row(c, shown, against) for c in ordered], groups)


def predictions(evaluation: Evaluation) -> Table:
    """List how far each method moves the target's probability."""
    rows = [
        Row([words(method), _mean_of(values, evaluation)])
        for method, values in evaluation.prediction_difference.items()
    ]
    return Table("predictions", [*_texts("Method"), *_numbers("Difference")], rows)


def stability(evaluation: Evaluation) -> Table:
    """List the correlation of each slide's map with that of a moved grid."""
    columns = [*_texts("Slide", "Method", "Attribution", "Layer"), *_numbers("Overlap", "Correlation")]
    rows = [
        Row(
            [
                *map(words, (row.slide, row.method, row.attribution, row.layer)),
                Cell(f"{row.overlap:g}", row.overlap),
                number_cell(row.correlation),
            ]
        )
        for row in evaluation.stability
    ]
    return Table("stability-rows", columns, rows)


def sanity(evaluation: Evaluation) -> Table:
    """List the maps of networks that are more and more random; those that hardly change are marked."""
    columns = [
        *_texts("Method", "Attribution", "Layer", "Random down to"),
        *_numbers("Rank correlation", "Insertion", "Deletion"),
    ]
    flagged = {id(stage) for stage in fully_random(evaluation) if is_unchanged(stage)}
    rows = [_sanity_row(stage, evaluation, flagged=id(stage) in flagged) for stage in evaluation.sanity]
    return Table("sanity-rows", columns, rows)


def localisation(evaluation: Evaluation) -> Table:
    """List how well each slide's maps find the annotated regions."""
    columns = [
        *_texts("Slide", "Map"),
        *_numbers("AUROC", "Average precision", "Annotated share"),
        *_texts("Pointing game"),
    ]
    return Table("localisation-rows", columns, [_localised_row(row) for row in evaluation.localised])


def patches(evaluation: Evaluation) -> Table:
    """List the patches with all that is known of each.

    A column is numeric where all patches have a number.
    """
    found = evaluation.patch_rows
    names = list(dict.fromkeys(name for patch in found for name in patch))
    numeric = {name: all(isinstance(patch.get(name), int | float) for patch in found) for name in names}
    rows = [
        Row([_fact(patch[name], numeric=numeric[name]) if name in patch else Cell() for name in names])
        for patch in found
    ]
    return Table("patches", [Column(name, numeric[name]) for name in names], rows)


def _texts(*headings: str) -> list[Column]:
    return [Column(heading) for heading in headings]


def _numbers(*headings: str) -> list[Column]:
    return [Column(heading, numeric=True) for heading in headings]


def _of_metrics(metrics: Sequence[Metric], sorted_by: Metric | None = None) -> list[Column]:
    return [
        Column(
            METRIC_NAME[metric].capitalize(),
            numeric=True,
            first=i == 0,
            order="descending" if metric == sorted_by else "",
        )
        for i, metric in enumerate(metrics)
    ]


def _score_row(found: ScoreCard, shown: Sequence[Metric], against: Mapping[Rival, Sequence[Metric]]) -> Row:
    kind = found.kind
    cells = [
        words(method_name(kind)),
        words(kind.attribution or ""),
        words(kind.layer or ""),
        Cell(f"1/{kind.reduction}", float(kind.reduction)) if kind.reduction else Cell(),
        *(mean_cell(found.scores[metric]) for metric in shown),
        *(
            difference_cell(found.against[rival][metric]) if rival in found.against else Cell()
            for rival, metrics in against.items()
            for metric in metrics
        ),
    ]
    return Row(cells, names=kind.label, kind="control" if kind.control else "")


def _sanity_row(stage: SanityStage, evaluation: Evaluation, *, flagged: bool) -> Row:
    names = map(words, (stage.method, stage.attribution, stage.layer, stage_name(stage)))
    correlation = _mean_of(stage.spearman, evaluation)
    if flagged:
        correlation = replace(correlation, mark=_UNCHANGED)
    return Row([*names, correlation, *(_mean_of(v, evaluation) for v in (stage.insertion, stage.deletion))])


def _localised_row(found: Localisation) -> Row:
    return Row(
        [
            words(found.slide),
            words(found.kind.label if found.kind else "patch probabilities"),
            *map(number_cell, (found.auroc, found.average_precision, found.annotated)),
            words("hit" if found.hit else "miss"),
        ]
    )


def _mean_of(values: Floats, evaluation: Evaluation) -> Cell:
    return mean_cell(summary(values, bootstrap_seed(evaluation)))


def _fact(value: Any, *, numeric: bool) -> Cell:
    if not numeric:
        return words(str(value))
    return number_cell(value) if isinstance(value, float) else Cell(str(value), float(value))
