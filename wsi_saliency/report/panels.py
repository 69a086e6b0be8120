"""What all pictures of an evaluation share: style, panels, a colour and marker per method, legends.

Colours are those of Okabe and Ito, which people with any colour vision can tell apart; every line also has a
marker or a dash of its own.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from matplotlib import rc_context
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.container import Container
from matplotlib.figure import Figure

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from contextlib import AbstractContextManager

    from matplotlib.axes import Axes

    from wsi_saliency.evaluation.statistics import Summary

Key = TypeVar("Key")

DPI = 144
"""Pixels per inch of a picture; a page shows it at 96, so that it is sharp on dense screens."""

COLUMNS = 3
"""So many panels stand side by side; more would be too small to read."""

CONTROL_COLOUR = "#7a7a84"
CONTROL_DASH: dict[str, Any] = {"random": (0, (1.2, 1.6)), "centred-gaussian": (0, (5, 2.5))}

_COLOURS = {
    "none": "#2b2b33",
    "backward-hook": "#0072B2",
    "centred-hook": "#56B4E9",
    "forward-hook": "#D55E00",
    "surrogate": "#009E73",
}
_OTHER_COLOURS = ("#CC79A7", "#E69F00")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_WIDTH, _ALONE = 4.3, 6.4  # of a panel, inches
_LONGEST_TICK = 18  # letters
_FOR_NAMES, _LINE = 0.16, 0.05  # room for names beside points, and between two of them, of a panel


@dataclass(frozen=True)
class Look:
    """A colour, a marker and a place beside the others for each of ``methods``, in all pictures the same."""

    methods: list[str]

    def colour(self, method: str) -> str:
        """Return the method's colour."""
        others = [m for m in self.methods if m not in _COLOURS]
        return _COLOURS.get(method) or _OTHER_COLOURS[others.index(method) % len(_OTHER_COLOURS)]

    def marker(self, method: str) -> str:
        """Return the method's marker."""
        return _MARKERS[self.methods.index(method) % len(_MARKERS)]

    def dodge(self, method: str, step: float) -> float:
        """Return how far beside the tick the method stands, so that intervals do not hide each other."""
        return step * (self.methods.index(method) - (len(self.methods) - 1) / 2)


def style() -> AbstractContextManager[None]:
    """Set text, lines and spines for what is drawn and rendered inside."""
    return rc_context(
        {
            "font.size": 10,
            "axes.titlesize": 11,
            "axes.titlelocation": "left",
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.edgecolor": "#6b6b75",
            "axes.grid": True,
            "axes.axisbelow": True,
            "grid.color": "#e6e6ea",
            "legend.frameon": False,
            "legend.fontsize": 9.5,
            "text.parse_math": False,
            "lines.linewidth": 1.8,
            "lines.markersize": 5.5,
        }
    )


def figure_of(w: float, h: float) -> Figure:
    """Make an empty white figure of w × h inches, which knows nothing of pyplot."""
    figure = Figure((w, h), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def panels_of(rows: Sequence[Sequence[Key]], height: float) -> tuple[Figure, dict[Key, Axes]]:
    """Make a panel of ``height`` inches for each key, in rows; all panels have one size."""
    columns = max(len(row) for row in rows)
    figure = figure_of(_WIDTH * columns if columns > 1 else _ALONE, height * len(rows) + 0.5)
    grid = figure.add_gridspec(len(rows), columns)
    panels = {key: figure.add_subplot(grid[r, c]) for r, row in enumerate(rows) for c, key in enumerate(row)}
    return figure, panels


def chunks(items: list[Key]) -> list[list[Key]]:
    """Break a row that is too long into several."""
    return [items[i : i + COLUMNS] for i in range(0, len(items), COLUMNS)]


def points(axes: Axes, at: Sequence[float], found: Sequence[Summary], look: Look, method: str) -> None:
    """Draw a method's means with their intervals, joined by a line."""
    means = [s.mean for s in found]
    # A percentile interval of very skewed values need not hold their mean.
    below, above = [max(0, s.mean - s.low) for s in found], [max(0, s.high - s.mean) for s in found]
    colour, marker = look.colour(method), look.marker(method)
    axes.errorbar(at, means, (below, above), color=colour, marker=marker, elinewidth=1.3, label=method)


def same_heights(panels: Sequence[Axes]) -> None:
    """Give panels that are to be compared one y axis' limits."""
    limits = [axes.get_ylim() for axes in panels]
    for axes in panels:
        axes.set_ylim(min(low for low, _ in limits), max(high for _, high in limits))


def same_widths(panels: Sequence[Axes]) -> None:
    """Give panels that are to be compared one x axis' limits."""
    limits = [axes.get_xlim() for axes in panels]
    for axes in panels:
        axes.set_xlim(min(low for low, _ in limits), max(high for _, high in limits))


def shared_legend(figure: Figure, panels: Iterable[Axes]) -> None:
    """Put one legend for all panels below them, each name once, methods (drawn as containers) first."""
    found = [entry for axes in panels for entry in zip(*axes.get_legend_handles_labels(), strict=True)]
    found.sort(key=lambda entry: not isinstance(entry[0], Container))
    handles: dict[str, Any] = {}
    for handle, label in found:
        handles.setdefault(label, handle)
    wide = int(figure.get_figwidth() // 2.6)
    columns = max(1, min(wide, len(handles)))
    figure.legend(list(handles.values()), list(handles), loc="outside lower center", ncols=columns)


def name_ticks(axes: Axes, names: Sequence[str]) -> None:
    """Write names below the x axis, slanted where there is no room for them side by side."""
    shown = [_shortened(name) for name in names]
    slanted = sum(max(map(len, name.split("\n"))) + 2 for name in shown) > 48
    how: dict[str, Any] = {"rotation": 35, "ha": "right", "rotation_mode": "anchor"} if slanted else {}
    axes.set_xticks(range(len(shown)), shown, **how)
    axes.set_xlim(-0.5, len(shown) - 0.5)
    axes.grid(visible=False, axis="x")


def name_points(axes: Axes, places: Mapping[str, tuple[float, float]]) -> None:
    """Write names to the left of points, one above the other where the points lie close together."""
    low, high = axes.get_ylim()
    left, right = axes.get_xlim()
    axes.set_xlim(left - _FOR_NAMES * (right - left), right)
    written: list[tuple[float, float]] = []
    for name, (x, y) in sorted(places.items(), key=lambda item: item[1][1]):
        below = [at for other, at in written if abs(x - other) < _FOR_NAMES * (right - left)]
        at = max([y, *(other + _LINE * (high - low) for other in below)])
        written.append((x, at))
        axes.annotate(
            _shortened(name),
            (x, y),
            xytext=(x - 0.02 * (right - left), at),
            ha="right",
            va="center",
            fontsize=9.5,
            color="#44444d",
        )


def png(figure: Figure) -> bytes:
    """Render a picture; the same figures give the same bytes."""
    buffer = io.BytesIO()
    with style():
        figure.savefig(buffer, format="png", dpi=DPI, metadata={"Software": None})
    return buffer.getvalue()


def _shortened(name: str) -> str:
    """Leave out the middle of a long name's first line."""
    first, *others = name.split("\n")
    if len(first) > _LONGEST_TICK:
        half = _LONGEST_TICK // 2
        first = f"{first[: half - 1]}…{first[-half:]}"
    return "\n".join([first, *others])
