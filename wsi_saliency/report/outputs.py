"""An evaluation as files: figures for programs, curves, pictures and a page for people.

``docs/evaluation.md`` describes each file.
"""

from __future__ import annotations

import csv
import io
import json
import math
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np

from wsi_saliency.evaluation.rivals import METRICS, RIVALS, bootstrap_seed, compare, compared_metrics
from wsi_saliency.evaluation.statistics import summary
from wsi_saliency.files import writing
from wsi_saliency.report.findings import findings, fully_random, is_unchanged
from wsi_saliency.report.page import page
from wsi_saliency.report.panels import png
from wsi_saliency.report.plots import plots

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from wsi_saliency.evaluation.measured import Evaluation, MapKind, Phase
    from wsi_saliency.evaluation.rivals import Difference, ScoreCard
    from wsi_saliency.evaluation.statistics import Summary

SCHEMA = 1
METRICS_JSON, METRICS_CSV, CURVES_NPZ, INDEX_HTML = "metrics.json", "metrics.csv", "curves.npz", "index.html"


def write_report(evaluation: Evaluation, folder: Path) -> None:
    """Write ``metrics.json``, ``metrics.csv``, ``curves.npz``, the pictures and ``index.html``.

    Raises
    ------
    OutputError
        If a file cannot be written.
    """
    compared, sentences = compare(evaluation), findings(evaluation)
    pictures = [(plot, png(plot.figure)) for plot in plots(evaluation)]
    files = {
        METRICS_JSON: metrics_json(evaluation, compared, sentences),
        METRICS_CSV: metrics_csv(compared).encode(),
        CURVES_NPZ: _curves(evaluation),
        **{f"{plot.name}.png": content for plot, content in pictures},
        INDEX_HTML: page(evaluation, compared, sentences, pictures).encode(),
    }
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        with writing(folder / name):
            (folder / name).write_bytes(content)


def metrics_json(evaluation: Evaluation, compared: Sequence[ScoreCard], sentences: Sequence[str]) -> bytes:
    """Write all figures but the curves as strict JSON: what is no number is null."""
    seed = bootstrap_seed(evaluation)
    content = {
        "schema": SCHEMA,
        "findings": list(sentences),
        "combinations": [_combination(c) for c in compared],
        "prediction_difference": {
            method: asdict(summary(values, seed))
            for method, values in evaluation.prediction_difference.items()
        },
        "phase": [_phase(row) for row in evaluation.phase],
        "stability": [asdict(row) for row in evaluation.stability],
        "sanity": _sanity(evaluation, seed),
        "localised": [asdict(row) | {"kind": row.kind and _names(row.kind)} for row in evaluation.localised],
        "facts": evaluation.facts,
        "patches": evaluation.patch_rows,
    }
    return (json.dumps(_strict(content), indent=1, allow_nan=False) + "\n").encode()


def metrics_csv(compared: Sequence[ScoreCard]) -> str:
    """Write a row for each kind of map, controls included; what there is not is empty."""
    rows = [_csv_row(c) for c in compared]
    names = dict.fromkeys(name for row in rows for name in row)
    out = io.StringIO()
    writer = csv.DictWriter(out, list(names), restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: _csv_value(value) for name, value in row.items()} for row in rows)
    return out.getvalue()


def _names(kind: MapKind) -> dict[str, Any]:
    return {"label": kind.label, **asdict(kind)}


def _combination(found: ScoreCard) -> dict[str, Any]:
    return {
        **_names(found.kind),
        **{metric: asdict(found.scores[metric]) for metric in METRICS},
        "against": {
            rival: {metric: _difference(difference) for metric, difference in differences.items()}
            for rival, differences in found.against.items()
        },
    }


def _difference(difference: Difference) -> dict[str, Any]:
    return {**asdict(difference.summary), "verdict": difference.verdict}


def _phase(found: Phase) -> dict[str, Any]:
    """Average each move over the patches that made it."""
    known = ~np.isnan(found.correlation)
    moves, correlation = found.moves[known], found.correlation[known]
    of_move = {(x, y): correlation[(moves == (x, y)).all(1)] for x, y in np.unique(moves, axis=0).tolist()}
    return {
        **_names(found.kind),
        "moves": [{"x": x, "y": y, "n": c.size, "mean": c.mean()} for (x, y), c in of_move.items()],
    }


def _sanity(evaluation: Evaluation, seed: int) -> list[dict[str, Any]]:
    flagged = {id(stage) for stage in fully_random(evaluation) if is_unchanged(stage)}
    return [
        {
            "method": stage.method,
            "attribution": stage.attribution,
            "layer": stage.layer,
            "module": stage.module,
            "spearman": asdict(summary(stage.spearman, seed)),
            "insertion": asdict(summary(stage.insertion, seed)),
            "deletion": asdict(summary(stage.deletion, seed)),
            "unchanged": id(stage) in flagged,
        }
        for stage in evaluation.sanity
    ]


def _csv_row(found: ScoreCard) -> dict[str, Any]:
    row: dict[str, Any] = {**_names(found.kind), "n": found.scores["insertion"].n}
    for metric in METRICS:
        score = found.scores[metric]
        row |= {metric: score.mean, f"{metric}_std": score.std} | _ends(metric, score)
    for rival in RIVALS:
        for metric in compared_metrics(rival):
            name = f"{metric}_minus_{rival.replace('-', '_')}"
            difference = found.against.get(rival, {}).get(metric)
            if difference:
                row |= {name: difference.summary.mean} | _ends(name, difference.summary)
                row[f"{name}_verdict"] = difference.verdict
    return row


def _ends(name: str, found: Summary) -> dict[str, float]:
    return {f"{name}_low": found.low, f"{name}_high": found.high}


def _csv_value(value: object) -> object:
    return "" if value is None or (isinstance(value, float) and math.isnan(value)) else value


def _strict(value: Any) -> Any:
    """Make values fit for strict JSON: null for NaN and infinities, and text for what JSON does not know."""
    if isinstance(value, dict):
        return {str(name): _strict(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_strict(inner) for inner in value]
    if isinstance(value, np.generic | np.ndarray):
        return _strict(value.tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, bool | int | str) else str(value)


def _curves(evaluation: Evaluation) -> bytes:
    """Stack all curves and areas, (K, N, …), with the names of the K kinds of map beside them."""
    kinds = [scored.kind for scored in evaluation.scored]
    names: dict[str, Any] = {
        "label": np.array([kind.label for kind in kinds], str),
        "control": np.array([kind.control or "" for kind in kinds], str),
        "method": np.array([kind.method or "" for kind in kinds], str),
        "attribution": np.array([kind.attribution or "" for kind in kinds], str),
        "layer": np.array([kind.layer or "" for kind in kinds], str),
        "reduction": np.array([kind.reduction or 0 for kind in kinds], np.int64),
    }
    fields = ("insertion_curves", "deletion_curves", *METRICS)
    arrays: dict[str, Any] = {f: np.stack([getattr(s, f) for s in evaluation.scored]) for f in fields}
    out = io.BytesIO()
    np.savez_compressed(out, **names, **arrays)
    return out.getvalue()
