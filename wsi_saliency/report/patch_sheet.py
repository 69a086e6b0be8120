"""A sheet of patches in the order of their scores, from the highest to the lowest."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw

from wsi_saliency.heatmap.lettering import FAINT_INK, INK, font, lettered

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

MOST = 48
_COLUMNS = 8
_SIDE, _GAP, _FRAME, _CAPTION, _HEADER = 144, 16, 5, 40, 76
_WRONG = "#d95f02"


def patch_sheet(
    patches: NDArray[np.uint8],
    scores: NDArray[np.floating],
    captions: Sequence[str],
    wrong: NDArray[np.bool_],
    title: str,
) -> Image.Image:
    """Draw patches by score; of many, some at even distances in their order, both ends among them.

    Parameters
    ----------
    patches
        (N, P, P, 3), RGB.
    scores
        (N,), what they are ordered by.
    captions
        What stands below each, beside its score.
    wrong
        (N,), whether a patch gets a frame.
    title
        What stands above all.
    """
    chosen = _chosen(scores)
    columns = min(_COLUMNS, len(chosen))
    rows = -(-len(chosen) // columns)
    width = max(640, _GAP + columns * (_SIDE + _GAP))
    sheet = Image.new("RGB", (width, _HEADER + rows * (_SIDE + _CAPTION + _GAP)), "white")
    draw = ImageDraw.Draw(sheet)
    draw.text((_GAP, 14), lettered(title, font(20, bold=True), width - 2 * _GAP), INK, font(20, bold=True))
    shown = "all" if len(chosen) == len(scores) else f"{len(chosen)} of {len(scores)}, at even distances"
    framed = "; orange frame: taken for another class than its folder's" if wrong.any() else ""
    line = f"{shown}, from the highest score to the lowest{framed}"
    draw.text((_GAP, 44), lettered(line, font(14), width - 2 * _GAP), FAINT_INK, font(14))
    for place, i in enumerate(chosen.tolist()):
        row, column = divmod(place, columns)
        x, y = _GAP + column * (_SIDE + _GAP), _HEADER + row * (_SIDE + _CAPTION + _GAP)
        if wrong[i]:
            draw.rectangle(
                (x - _FRAME, y - _FRAME, x + _SIDE + _FRAME - 1, y + _SIDE + _FRAME - 1), fill=_WRONG
            )
        sheet.paste(Image.fromarray(patches[i]).resize((_SIDE, _SIDE), Image.Resampling.LANCZOS), (x, y))
        draw.text((x, y + _SIDE + 6), f"{scores[i]:.3f}", INK, font(14, bold=True))
        caption = lettered(captions[i], font(13), _SIDE - 52)
        draw.text((x + 52, y + _SIDE + 6), caption, FAINT_INK, font(13))
    return sheet


def _chosen(scores: NDArray[np.floating]) -> NDArray[np.intp]:
    """Return the places of what is shown, the highest score first; equal ones keep their order."""
    order = np.argsort(-scores, kind="stable")
    places = np.linspace(0, len(order) - 1, min(MOST, len(order))).round().astype(int)
    return np.asarray(order[places])
