"""The page that shows an evaluation: one file, without any other and without a network."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from wsi_saliency.evaluation.statistics import FEWEST
from wsi_saliency.report import tables
from wsi_saliency.report.parts import Picture
from wsi_saliency.report.rendering import rendered
from wsi_saliency.report.wording import plural

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from wsi_saliency.evaluation.measured import Evaluation
    from wsi_saliency.evaluation.rivals import ScoreCard
    from wsi_saliency.report.plots import Plot

_CSS_DPI = 96  # a page's pixels per inch


def page(
    evaluation: Evaluation,
    compared: Sequence[ScoreCard],
    sentences: Sequence[str],
    pictures: Sequence[tuple[Plot, bytes]],
) -> str:
    """Return the page: findings, how to read it, pictures (PNG), tables, and all facts."""
    return rendered(
        "evaluation.html",
        subject=_subject(evaluation),
        findings=sentences,
        fewest=FEWEST,
        pictures=[_picture(plot, png) for plot, png in pictures],
        scores=tables.scores(compared),
        predictions=tables.predictions(evaluation),
        stability=tables.stability(evaluation),
        sanity=tables.sanity(evaluation),
        localisation=tables.localisation(evaluation),
        all_facts=list(_flat(evaluation.facts)),
        patches=tables.patches(evaluation),
    )


def _subject(evaluation: Evaluation) -> str:
    """Name model, target, and how much was looked at."""
    facts = evaluation.facts
    model = facts.get("model")
    named = model.get("uri") if isinstance(model, dict) else model
    slides = {str(row.get("slide")) for row in evaluation.patch_rows}
    amount = f"{len(evaluation.patch_rows)} patches of {plural(len(slides), 'slide')}"
    target = f"target {facts['target']}" if "target" in facts else ""
    return " · ".join(part for part in (str(named or ""), target, amount) if part)


def _picture(plot: Plot, png: bytes) -> Picture:
    w, h = (round(inches * _CSS_DPI) for inches in plot.figure.get_size_inches())
    return Picture(plot.name, plot.title, plot.caption, png, w, h)


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
