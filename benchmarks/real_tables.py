"""Tables of what `real_tissue.py` has measured, as Markdown.

Differences are paired over the same patches, with 95 % intervals (bootstrap). All figures are insertion −
deletion, higher is better, unless a column says otherwise.
"""

from __future__ import annotations

from itertools import product
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from wsi_saliency.evaluation.statistics import Summary, paired, verdict

Values = NDArray[np.float64]
Scores = dict[str, dict[str, Values]]
Stability = dict[str, dict[str, dict[str, float]]]

COLOURS = {"deeplift": "#0072B2", "gradient-x-activation": "#D55E00", "gradient": "#7a7a84"}
MARKERS = {"none": "o", "backward-hook": "s", "centred-hook": "^", "forward-hook": "D"}

LAYERS = {"input": "input", "4": "1/4", "8": "1/8", "16": "1/16"}
HOOKS = ("backward-hook", "centred-hook", "forward-hook", "surrogate")
ATTRIBUTIONS = ("gradient", "gradient-x-activation", "deeplift", "integrated-gradients")
MAPS = {
    "none": "`none`",
    "backward-hook.drift-taken-out": "`backward-hook`, drift taken out",
    "backward-hook": "`backward-hook`, drift left in",
    "centred-hook": "**`centred-hook`**",
    "forward-hook": "`forward-hook`",
    "surrogate": "`surrogate`",
    "blurred-to-centred-hook": "`none`, blurred to the smoothness of `centred-hook`",
    "blurred-to-backward-hook": "`none`, blurred to the smoothness of `backward-hook`",
    "low-pass": "`none`, low-pass chosen by faithfulness",
    "smoothgrad": "`none`, SmoothGrad",
}
COMPARED = (
    ("centred-hook", "none"),
    ("centred-hook", "forward-hook"),
    ("forward-hook", "backward-hook"),
    ("centred-hook", "backward-hook.drift-taken-out"),
    ("centred-hook", "backward-hook"),
    ("centred-hook", "blurred-to-centred-hook"),
    ("centred-hook", "low-pass"),
    ("backward-hook", "none"),
    ("backward-hook.drift-taken-out", "backward-hook"),
    ("backward-hook.drift-taken-out", "none"),
    ("backward-hook.drift-taken-out", "blurred-to-backward-hook"),
    ("surrogate", "none"),
    ("centred-hook", "surrogate"),
)


def read(folder: Path) -> Scores:
    """Read the scores of all maps by their names."""
    return {path.stem: dict(np.load(path)) for path in sorted(folder.glob("*.npz"))}


def faithful(scores: Scores, name: str, substrate: str = "blur") -> Values | None:
    """Return insertion − deletion of each patch, (N,); None where it was not measured."""
    found = scores.get(name, {})
    if f"insertion_{substrate}" not in found:
        return None
    return found[f"insertion_{substrate}"] - found[f"deletion_{substrate}"]


def mean_and_error(values: Values | None) -> str:
    """Mean ± its standard error."""
    if values is None:
        return "–"
    return f"{values.mean():.3f} ± {values.std(ddof=1) / np.sqrt(len(values)):.3f}".replace("-", "−")


def difference(d: Summary) -> str:
    """Mean difference and its interval."""
    return f"{d.mean:+.3f} [{d.low:+.3f}, {d.high:+.3f}]".replace("-", "−")


def table(scores: Scores, layer: str, substrate: str = "blur") -> list[str]:
    """Lay out insertion − deletion at a layer: a row for each kind of map, a column for each attribution."""
    rows = []
    for map_, label in MAPS.items():
        cells = [mean_and_error(faithful(scores, f"{layer}.{a}.{map_}", substrate)) for a in ATTRIBUTIONS]
        if any(cell != "–" for cell in cells):
            rows.append(f"| {label} | {' | '.join(cells)} |")
    if not rows:
        return []
    return [
        f"\n{LAYERS[layer]}, {substrate} substrate\n",
        f"| map | {' | '.join(ATTRIBUTIONS)} |",
        f"|---|{'---|' * len(ATTRIBUTIONS)}",
        *rows,
    ]


def against(scores: Scores, a: str, b: str, substrate: str = "blur") -> list[str]:
    """Paired differences a − b of insertion − deletion, a row for each attribution, a column a layer."""
    rows = []
    for attribution in ATTRIBUTIONS:
        cells = []
        for layer in ("4", "8", "16"):
            pair = [faithful(scores, f"{layer}.{attribution}.{m}", substrate) for m in (a, b)]
            if pair[0] is None or pair[1] is None:
                cells.append("–")
            else:
                d = paired(pair[0], pair[1])
                cells.append(f"{difference(d)} {verdict(d, higher_is_better=True)}")
        if any(cell != "–" for cell in cells):
            rows.append(f"| {attribution} | {' | '.join(cells)} |")
    if not rows:
        return []
    return [f"\n{a} − {b}, {substrate} substrate\n", "| | 1/4 | 1/8 | 1/16 |", "|---|---|---|---|", *rows]


def variation(scores: Scores) -> list[str]:
    """Lay out the total variation, relative to that of none."""
    columns = ATTRIBUTIONS[:3]
    rows = []
    for layer, method in product(("4", "8", "16"), HOOKS):
        shares = [_relative_variation(scores, f"{layer}.{a}", method) for a in columns]
        if any(share != "–" for share in shares):
            rows.append(f"| {LAYERS[layer]} {method} | {' | '.join(shares)} |")
    head = [f"| | {' | '.join(columns)} |", f"|---|{'---|' * len(columns)}"]
    return ["\nTotal variation relative to `none`\n", *head, *rows] if rows else []


def _relative_variation(scores: Scores, prefix: str, method: str) -> str:
    one, plain = (scores.get(f"{prefix}.{m}") for m in (method, "none"))
    if not one or not plain:
        return "–"
    return f"{one['total_variation'].mean() / plain['total_variation'].mean():.2f}"


def others(scores: Scores) -> list[str]:
    """Lay out controls and Grad-CAM, with both substrates."""
    names = ["last.gradcam.none", "last.gradcam.forward-hook", "random", "centred-gaussian"]
    rows = [
        f"| {name} | {' | '.join(mean_and_error(faithful(scores, name, s)) for s in ('blur', 'white'))} |"
        for name in names
        if name in scores
    ]
    return ["\n| map | blur | white |", "|---|---|---|", *rows]


def tables(scores: Scores) -> list[str]:
    """Lay out all tables of a study."""
    lines = [line for layer in LAYERS for line in table(scores, layer)]
    lines += [line for layer in ("8", "16") for line in table(scores, layer, "white")]
    lines += others(scores)
    lines += [line for pair in COMPARED for line in against(scores, *pair)]
    lines += [line for pair in COMPARED[:3] for line in against(scores, *pair, "white")]
    return lines + variation(scores)


def picture(scores: Scores, stability: Stability, path: Path) -> None:
    """Draw faithfulness against stability: a point for each method, attribution and layer.

    ``stability`` is by layer, attribution and method: correlation of a map with that of a moved grid.
    """
    figure = Figure(figsize=(8.4, 5.2), layout="constrained")
    axes = figure.subplots()
    for layer, by_attribution in stability.items():
        for attribution, by_method in by_attribution.items():
            colour, filled = COLOURS[attribution], layer == "16"
            points = [
                (x, float(values.mean()), method)
                for method, x in by_method.items()
                if (values := faithful(scores, f"{layer}.{attribution}.{method}")) is not None
            ]
            xs, ys, _ = zip(*points, strict=True)
            axes.plot(xs, ys, color=colour, linewidth=0.8, alpha=0.4)
            for x, y, method in points:
                face = colour if filled else "white"
                axes.scatter(x, y, 70, face, MARKERS[method], edgecolors=colour, linewidths=1.6, zorder=3)
    _legend(axes)
    for name, dash in (("random", ":"), ("centred-gaussian", "--")):
        axes.axhline(float(faithful(scores, name).mean()), color="#7a7a84", linestyle=dash, linewidth=1)
    axes.axvline(0.9, color="#c9c9d0", linewidth=1)
    axes.set_xlabel("stability: correlation with the map of a grid moved by half a stride, overlap 0.5")
    axes.set_ylabel("faithfulness: insertion − deletion")
    figure.savefig(path, dpi=110)


def _legend(axes: Axes) -> None:
    shown = [Line2D([], [], color=c, linestyle="", marker="o", label=a) for a, c in COLOURS.items()]
    shown += [Line2D([], [], color="#2b2b33", linestyle="", marker=m, label=n) for n, m in MARKERS.items()]
    for label, face in (("1/8", "white"), ("1/16", "#2b2b33")):
        how = {"color": "#2b2b33", "markerfacecolor": face}
        shown.append(Line2D([], [], linestyle="", marker="o", label=label, **how))
    for label, dash in (("random map", ":"), ("Gaussian in the middle", "--")):
        shown.append(Line2D([], [], color="#7a7a84", linestyle=dash, label=label))
    axes.legend(handles=shown, loc="upper left", bbox_to_anchor=(1.01, 1), fontsize=8, frameon=False)
