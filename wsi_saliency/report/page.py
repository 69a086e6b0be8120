"""The page that shows an evaluation: one file, without any other and without a network."""

from __future__ import annotations

import base64
import json
from importlib import resources
from typing import TYPE_CHECKING, Any

from wsi_saliency.evaluation.comparison import METRICS, RIVALS, bootstrap_seed, compared_metrics
from wsi_saliency.evaluation.statistics import FEWEST, summary
from wsi_saliency.report.findings import fully_random, is_unchanged
from wsi_saliency.report.markup import Cell, Column, Row, table, text, words
from wsi_saliency.report.wording import (
    METRIC_NAME,
    RIVAL_NAME,
    interval,
    mean,
    method_name,
    number,
    plural,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from wsi_saliency.evaluation.comparison import Compared, Difference, Metric, Rival
    from wsi_saliency.evaluation.results import Evaluation, Floats
    from wsi_saliency.evaluation.statistics import Summary
    from wsi_saliency.report.plots import Plot

CSS_DPI = 96
_LEGIBLE = 0.7  # share of its size below which a picture is not shrunk: it scrolls in its box

_MARK = {"better": "✓", "worse": "✗", "undecided": "?"}
_SORTED_BY = 4  # insertion
_SHOWN_AGAINST: tuple[Metric, ...] = ("insertion", "deletion", "phase_stability")
_TERMS = (
    (
        "Insertion (higher is better)",
        "A patch, blurred unless --insertion-from says otherwise, gets its pixels back in the order of the "
        "map, largest first; the score is the area under the curve of the target's probability. A map of "
        "what the classifier uses climbs early.",
    ),
    (
        "Deletion (lower is better)",
        "The patch loses its pixels in the same order. A map of what the classifier uses makes the "
        "probability fall early.",
    ),
    (
        "Phase stability (higher is better)",
        "The patch is cut again, a little to the right and below, and its map moved back: correlation with "
        "the first map, mean over moves by less than the network's total stride. Where it is low, the map "
        "shows how the tissue lay between the network's strides, which says nothing about the tissue.",
    ),
    (
        "Total variation (lower is smoother)",
        "Sum of the differences between neighbouring cells, relative to the map's magnitude; a checkerboard "
        "has much of it. It says how well a map can be read, not whether it is true.",
    ),
    (
        "Controls",
        "A random map and a spot in the middle of the patch (a Gaussian) know nothing of the classifier; a "
        "map that does not beat them explains nothing. The map without smoothing (method none), blurred "
        "until its total variation is that of a method's map, is what the method has to beat: where it does "
        "not, a plain blur would have done.",
    ),
    (
        "Intervals and marks",
        "Brackets are 95 % bootstrap intervals of the mean over patches. Differences are those of the same "
        "patches, map minus rival: ✓ better and ✗ worse where the interval excludes 0, ? undecided where it "
        f"does not, or with fewer than {FEWEST} patches. Nothing is corrected for the number of comparisons: "
        "of a hundred without any true difference, about five are marked.",
    ),
)


def page(
    evaluation: Evaluation,
    compared: Sequence[Compared],
    sentences: Sequence[str],
    pictures: Sequence[tuple[Plot, bytes]],
) -> str:
    """Return the page: findings, how to read it, pictures (PNG), tables, and all facts."""
    sections = [
        ("findings", "Findings", _list(sentences)),
        ("terms", "How to read this page", _terms()),
        ("pictures", "Pictures", "\n".join(_picture(plot, png) for plot, png in pictures)),
        ("scores-table", "All scores", _filter() + _scores(compared)),
        ("more", "Further tables", "\n".join(_further(evaluation))),
        ("facts", "What was evaluated", _facts(evaluation)),
    ]
    sections = [(name, title, body) for name, title, body in sections if body]
    links = " ".join(f'<a href="#{name}">{text(title)}</a>' for name, title, _ in sections)
    body = "\n".join(
        f'<section aria-labelledby="{name}"><h2 id="{name}">{text(title)}</h2>\n{content}\n</section>'
        for name, title, content in sections
    )
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<title>Is the map faithful? {text(_subject(evaluation))}</title>
<style>
{_resource("page.css")}</style>
</head>
<body>
<header>
<h1>Is the map faithful?</h1>
<p class="subject">{text(_subject(evaluation))}</p>
<nav aria-label="Sections">{links}</nav>
</header>
<main>
{body}
</main>
<script>
{_resource("page.js")}</script>
</body>
</html>
"""


# Nothing is fetched, whatever a name on the page may hold.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"


def _resource(name: str) -> str:
    return (resources.files("wsi_saliency.report") / name).read_text(encoding="utf-8")


def _subject(evaluation: Evaluation) -> str:
    """Name model, target, and how much was looked at."""
    facts = evaluation.facts
    model = facts.get("model")
    named = model.get("uri") if isinstance(model, dict) else model
    slides = {str(row.get("slide")) for row in evaluation.patch_rows}
    amount = f"{len(evaluation.patch_rows)} patches of {plural(len(slides), 'slide')}"
    target = f"target {facts['target']}" if "target" in facts else ""
    return " · ".join(part for part in (str(named or ""), target, amount) if part)


def _list(sentences: Sequence[str]) -> str:
    return '<ul class="findings">' + "".join(f"<li>{_asked(s)}</li>" for s in sentences) + "</ul>"


def _asked(sentence: str) -> str:
    """Make the question stand out from its answer."""
    question, mark, answer = sentence.partition("? ")
    return f"<strong>{text(question)}?</strong> {text(answer)}" if mark else text(sentence)


def _terms() -> str:
    return (
        '<dl class="terms">' + "".join(f"<dt>{text(t)}</dt><dd>{text(d)}</dd>" for t, d in _TERMS) + "</dl>"
    )


def _picture(plot: Plot, png: bytes) -> str:
    w, h = (round(inches * CSS_DPI) for inches in plot.figure.get_size_inches())
    data = base64.b64encode(png).decode("ascii")
    return (
        f'<figure id="{text(plot.name)}"><h3>{text(plot.title)}</h3>'
        f'<div class="picture" role="region" tabindex="0" aria-label="{text(plot.title)}, picture">'
        f'<img src="data:image/png;base64,{data}" width="{w}" height="{h}" alt="{text(plot.title)}" '
        f'style="min-width: {round(_LEGIBLE * w)}px"></div>'
        f"<figcaption>{text(plot.caption)}</figcaption></figure>"
    )


def _filter() -> str:
    return (
        '<div class="filter"><label for="words">Show rows with</label>'
        '<input id="words" type="search" aria-controls="scores-rows" placeholder="deeplift layer2">'
        '<output id="shown" for="words"></output></div>\n'
    )


def _scores(compared: Sequence[Compared]) -> str:
    shown = [metric for metric in METRICS if any(c.scores[metric].n for c in compared)]
    against = {
        rival: [m for m in _SHOWN_AGAINST if m in shown and m in compared_metrics(rival)] for rival in RIVALS
    }
    columns = [
        Column("Method"),
        Column("Attribution"),
        Column("Layer"),
        Column("Scale", numeric=True),
        *_columns(shown),
        *(column for metrics in against.values() for column in _columns(metrics)),
    ]
    groups = [("", 4), ("Scores", len(shown))]
    groups += [(f"Against {RIVAL_NAME[rival]}", len(metrics)) for rival, metrics in against.items()]
    ordered = sorted(compared, key=lambda c: c.scores["insertion"].mean, reverse=True)
    rows = [
        Row(_score_cells(c, shown, against), names=c.kind.label, kind="control" if c.kind.control else "")
        for c in ordered
    ]
    return table("scores-rows", columns, rows, groups=groups, sorted_by=(_SORTED_BY, "descending"))


def _columns(metrics: Sequence[Metric]) -> list[Column]:
    return [
        Column(METRIC_NAME[metric].capitalize(), numeric=True, first=i == 0)
        for i, metric in enumerate(metrics)
    ]


def _score_cells(
    found: Compared, shown: Sequence[Metric], against: Mapping[Rival, Sequence[Metric]]
) -> list[Cell]:
    kind = found.kind
    return [
        words(method_name(kind)),
        words(kind.attribution or ""),
        words(kind.layer or ""),
        Cell(
            f"1/{kind.reduction}" if kind.reduction else "", float(kind.reduction) if kind.reduction else None
        ),
        *(_summary(found.scores[metric]) for metric in shown),
        *(
            _difference(found.against[rival][metric]) if rival in found.against else Cell("", None)
            for rival, metrics in against.items()
            for metric in metrics
        ),
    ]


def _summary(found: Summary) -> Cell:
    if not found.n:
        return Cell("", None)
    return Cell(f"{text(mean(found))}<small>{text(interval(found))}</small>", found.mean)


def _difference(found: Difference) -> Cell:
    return Cell(
        f'<span class="mark" aria-hidden="true">{_MARK[found.verdict]}</span>'
        f"{text(mean(found.summary, signed=True))}"
        f'<span class="hidden-text"> {found.verdict}</span><small>{text(interval(found.summary))}</small>',
        found.summary.mean,
        found.verdict,
    )


def _further(evaluation: Evaluation) -> Iterator[str]:
    """Make the tables of what is not scored patch by patch and map by map, where there is any."""
    if evaluation.prediction_difference:
        yield "<h3>Prediction difference</h3>"
        yield "<p>How far a method moves the target's probability: mean of |difference| over patches.</p>"
        yield _predictions(evaluation)
    if evaluation.stability:
        yield "<h3>Grid stability</h3>"
        yield _stability(evaluation)
    if evaluation.sanity:
        yield "<h3>Sanity</h3>"
        yield (
            "<p>Maps of a network that is random from the head down to a module, against the original maps: "
            "rank correlation, and insertion and deletion on the intact classifier.</p>"
        )
        yield _sanity(evaluation)
    if evaluation.localised:
        yield "<h3>Localisation</h3>"
        yield (
            "<p>How well a slide's map finds the annotated regions, over the pixels of the tissue. By chance "
            "the AUROC is 0.5, and average precision the annotated share.</p>"
        )
        yield _localised(evaluation)


def _predictions(evaluation: Evaluation) -> str:
    rows = [
        Row([words(method), _mean_of(values, evaluation)])
        for method, values in evaluation.prediction_difference.items()
    ]
    return table("predictions", [Column("Method"), Column("Difference", numeric=True)], rows)


def _stability(evaluation: Evaluation) -> str:
    columns = [Column(name) for name in ("Slide", "Method", "Attribution", "Layer")]
    columns += [Column("Overlap", numeric=True), Column("Correlation", numeric=True)]
    rows = [
        Row(
            [
                *map(words, (row.slide, row.method, row.attribution, row.layer)),
                Cell(f"{row.overlap:g}", row.overlap),
                _number(row.correlation),
            ]
        )
        for row in evaluation.stability
    ]
    return table("stability-rows", columns, rows)


def _sanity(evaluation: Evaluation) -> str:
    columns = [Column(name) for name in ("Method", "Attribution", "Layer", "Random down to")]
    columns += [Column(n, numeric=True) for n in ("Rank correlation", "Insertion", "Deletion")]
    flagged = {id(stage) for stage in fully_random(evaluation) if is_unchanged(stage)}
    rows = []
    for stage in evaluation.sanity:
        correlation = _mean_of(stage.spearman, evaluation)
        if id(stage) in flagged:
            mark = '<span class="mark" aria-hidden="true">✗</span><span class="hidden-text">unchanged </span>'
            correlation = Cell(mark + correlation.html, correlation.value, "worse")
        names = map(words, (stage.method, stage.attribution, stage.layer, stage.module or "intact"))
        scores = (_mean_of(values, evaluation) for values in (stage.insertion, stage.deletion))
        rows.append(Row([*names, correlation, *scores]))
    return table("sanity-rows", columns, rows)


def _localised(evaluation: Evaluation) -> str:
    columns = [Column("Slide"), Column("Map")]
    columns += [Column(n, numeric=True) for n in ("AUROC", "Average precision", "Annotated share")]
    rows = [
        Row(
            [
                words(row.slide),
                words(row.kind.label if row.kind else "patch probabilities"),
                *map(_number, (row.auroc, row.average_precision, row.annotated)),
                words("hit" if row.hit else "miss"),
            ]
        )
        for row in evaluation.localised
    ]
    return table("localisation-rows", [*columns, Column("Pointing game")], rows)


def _mean_of(values: Floats, evaluation: Evaluation) -> Cell:
    return _summary(summary(values, bootstrap_seed(evaluation)))


def _number(value: float) -> Cell:
    return Cell(text(number(value)), value)


def _facts(evaluation: Evaluation) -> str:
    rows = [
        f'<tr><th scope="row">{text(k)}</th><td class="fact">{text(v)}</td></tr>'
        for k, v in _flat(evaluation.facts)
    ]
    facts = f'<div class="scroll"><table><tbody>{"".join(rows)}</tbody></table></div>'
    return f"{facts}\n<details><summary>Patches</summary>{_patches(evaluation)}</details>"


def _flat(facts: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Write nested facts as names with dots and plain values."""
    for name, value in facts.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{prefix}{name}.")
        elif isinstance(value, list | tuple) and not any(isinstance(v, dict | list | tuple) for v in value):
            yield f"{prefix}{name}", ", ".join(map(str, value)) or "–"
        elif isinstance(value, dict | list | tuple):
            yield f"{prefix}{name}", json.dumps(value, ensure_ascii=False, default=str)
        else:
            yield f"{prefix}{name}", "–" if value is None else str(value)


def _patches(evaluation: Evaluation) -> str:
    names = list(dict.fromkeys(name for row in evaluation.patch_rows for name in row))
    numeric = {n: all(isinstance(row.get(n), int | float) for row in evaluation.patch_rows) for n in names}
    rows = [
        Row([_fact(row[n], numeric[n]) if n in row else Cell("", None) for n in names])
        for row in evaluation.patch_rows
    ]
    return table("patches", [Column(name, numeric[name]) for name in names], rows)


def _fact(value: object, numeric: bool) -> Cell:
    if numeric and isinstance(value, float):
        return _number(value)
    return Cell(text(value), float(str(value))) if numeric else words(value)
