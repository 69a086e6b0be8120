"""The sheet of examples: patches and their maps side by side."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize

from wsi_saliency.report.panels import figure_of
from wsi_saliency.report.wording import map_name, method_name

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

    from wsi_saliency.evaluation.measured import Evaluation, Example, MapKind

MOST_EXAMPLES = 6
MOST_MAPS = 8

_SIDE = 1.62  # of a picture, inches
_CLIPPED = 99.0  # percentile of a map's magnitudes that has the darkest colour
_COLOURS = "RdBu_r"


def examples(evaluation: Evaluation) -> Figure:
    """Draw some patches with their maps side by side, each map on its own scale around 0."""
    shown = [example for example in evaluation.examples if example.maps][:MOST_EXAMPLES]
    kinds = _kinds_of(shown)
    places = {map_name(kind) for kind in kinds} - {""}
    figure = figure_of(_SIDE * (1 + len(kinds)) + 0.4, _SIDE * len(shown) + 1.2)
    rows = figure.subplots(len(shown), 1 + len(kinds), squeeze=False)
    for row, example in zip(rows, shown, strict=True):
        _row(row, example, kinds)
    rows[0, 0].set_title("patch", loc="center", fontsize=10)
    for axes, kind in zip(rows[0, 1:], kinds, strict=True):
        axes.set_title(_title(kind, with_place=len(places) > 1), loc="center", fontsize=10)
    if len(places) == 1:
        figure.suptitle(places.pop(), fontsize=11)
    _bar(figure, rows, signed=_is_signed(shown))
    return figure


def _kinds_of(shown: list[Example]) -> list[MapKind]:
    """Kinds of map for the columns: all, or the first attribution's and layer's if there are too many."""
    kinds = list(dict.fromkeys(kind for example in shown for kind in example.maps))
    if len(kinds) > MOST_MAPS:
        place = next((map_name(kind) for kind in kinds if kind.method), "")
        kinds = [kind for kind in kinds if map_name(kind) in (place, "")]
    return kinds[:MOST_MAPS]


def _row(row: NDArray[np.object_], example: Example, kinds: list[MapKind]) -> None:
    for axes in row:
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
    row[0].imshow(example.patch)
    row[0].set_ylabel(f"p = {example.probability:.2f}")
    for axes, kind in zip(row[1:], kinds, strict=True):
        if kind in example.maps:
            _map(axes, example.maps[kind])


def _map(axes: Axes, values: NDArray[np.float32]) -> None:
    """Draw a map without smoothing it; what counts is its order, so each map has its own scale."""
    limit = float(np.percentile(np.abs(values), _CLIPPED)) or float(np.abs(values).max()) or 1.0
    axes.imshow(values, cmap=_COLOURS, vmin=-limit, vmax=limit, interpolation="nearest", aspect="equal")


def _title(kind: MapKind, *, with_place: bool) -> str:
    name = method_name(kind).replace("smooth as ", "smooth as\n")
    return f"{name}\n{map_name(kind)}" if with_place and kind.layer else name


def _is_signed(shown: list[Example]) -> bool:
    return any((values < 0).any() for example in shown for values in example.maps.values())


def _bar(figure: Figure, rows: NDArray[np.object_], *, signed: bool) -> None:
    """Draw the colour bar; maps without a sign, such as a gradient's magnitude, have the upper half of it."""
    colours = ScalarMappable(Normalize(-1, 1), _COLOURS)
    bar = figure.colorbar(
        colours,
        ax=rows.ravel().tolist(),
        location="bottom",
        shrink=0.5,
        aspect=4 * figure.get_figwidth(),
        pad=0.02,
    )
    if signed:
        bar.set_ticks([-1, 0, 1], labels=["against the target", "0", "for the target"])
    else:
        bar.ax.set_xlim(0, 1)
        bar.set_ticks([0, 1], labels=["0", "most important"])
    bar.ax.tick_params(length=0)
