"""How many patches of a result have pen, folds or blur, from its table of patches."""

from __future__ import annotations

import csv
from typing import TYPE_CHECKING

from wsi_saliency.files import writing
from wsi_saliency.heatmap.result import QUALITY_COLUMNS
from wsi_saliency.slides.quality import FOLD_SHARE, PEN_SHARE, SHARPNESS

if TYPE_CHECKING:
    from pathlib import Path


def quality_counts(table: Path) -> dict[str, int | float] | None:
    """Count the patches of a table, and say from which values on; None if it has no such columns."""
    pen = fold = blur = 0
    with writing(table), table.open(newline="", encoding="utf-8") as file:
        rows = csv.DictReader(file)
        if not set(QUALITY_COLUMNS) <= set(rows.fieldnames or ()):
            return None
        for row in rows:
            pen += float(row["qc_pen"]) >= PEN_SHARE
            fold += float(row["qc_fold"]) >= FOLD_SHARE
            blur += float(row["qc_sharpness"]) < SHARPNESS
    limits = {"pen_share": PEN_SHARE, "fold_share": FOLD_SHARE, "sharpness": SHARPNESS}
    return {"pen": pen, "fold": fold, "blur": blur, **limits}
