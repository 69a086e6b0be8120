from __future__ import annotations

import io
import subprocess
import sys
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

from tests.helpers.evaluations import ATTRIBUTIONS, LARGE, LAYERS, METHODS, SMALL, Shape, made_evaluation
from tests.helpers.paths import ROOT
from wsi_saliency.evaluation.measured import Evaluation, Example, MapKind
from wsi_saliency.report.panels import DPI, Look, name_points, panels_of, png, style
from wsi_saliency.report.plots import curves as draw_curves
from wsi_saliency.report.plots import (
    faithfulness_by_stability,
    plots,
    sanity,
    scores_by_layer,
    smoothness_by_layer,
    stability,
)
from wsi_saliency.report.sheet import MOST_MAPS, examples

if TYPE_CHECKING:
    from collections.abc import Iterator

MIDDLE = Shape(METHODS[:3], ATTRIBUTIONS[:2], LAYERS[2:5], patches=20)


@pytest.fixture(autouse=True)
def _styled() -> Iterator[None]:
    with style():
        yield


def line(figure, title: str, label: str):
    """Points of a line (or of an error bar's) in the panel with a title."""
    axes = next(a for a in figure.axes if a.get_title(loc="left") == title)
    handles = dict(zip(*axes.get_legend_handles_labels()[::-1], strict=True))
    handle = handles[label]
    return (handle[0] if isinstance(handle, tuple) else handle).get_xydata()


def of(evaluation: Evaluation, *names: str | None, control: str | None = None):
    return next(
        s
        for s in evaluation.scored
        if (s.kind.method, s.kind.attribution, s.kind.layer) == names and s.kind.control == control
    )


@pytest.mark.parametrize("shape", [SMALL, LARGE], ids=["small", "large"])
def test_pictures_have_a_readable_size_and_something_on_them(shape: Shape) -> None:
    drawn = plots(made_evaluation(replace(shape, patches=12, examples=1)))
    names = {plot.name for plot in drawn}
    assert {"scores", "curves", "total-variation", "examples"} <= names
    assert ({"stability", "sanity"} <= names) == shape.extras
    for plot in drawn:
        with Image.open(io.BytesIO(png(plot.figure))) as image:
            assert image.width <= 14 * DPI
            assert np.asarray(image.convert("L")).std() > 5
        assert plot.title
        assert plot.caption.endswith(".")


def test_points_are_means_from_the_input_to_the_deepest_layer() -> None:
    evaluation = made_evaluation(MIDDLE)
    points = line(scores_by_layer(evaluation), "deeplift: deletion", "backward-hook")
    expected = [
        of(evaluation, "backward-hook", "deeplift", layer).deletion.mean()
        for layer in ("layer1", "layer2", "layer3")
    ]
    np.testing.assert_allclose(points[:, 1], expected)
    assert np.abs(points[:, 0] - [0, 1, 2]).max() < 0.3


def test_layers_are_ordered_by_depth_however_they_come() -> None:
    evaluation = made_evaluation(MIDDLE)
    backwards = replace(evaluation, scored=evaluation.scored[::-1])
    figure = smoothness_by_layer(backwards)
    assert [t.get_text() for t in figure.axes[0].get_xticklabels()] == [
        "layer1\n1/4",
        "layer2\n1/8",
        "layer3\n1/16",
    ]
    np.testing.assert_allclose(
        line(figure, "gradient", "none")[:, 1],
        line(smoothness_by_layer(evaluation), "gradient", "none")[:, 1],
    )


def test_controls_are_drawn_where_they_are() -> None:
    evaluation = made_evaluation(MIDDLE)
    figure = scores_by_layer(evaluation)
    random = of(evaluation, None, None, None, control="random")
    np.testing.assert_allclose(line(figure, "gradient: insertion", "random")[:, 1], random.insertion.mean())
    blurred = of(evaluation, "forward-hook", "gradient", "layer2", control="blurred-none")
    points = line(figure, "gradient: insertion", "blur as smooth as forward-hook")
    assert points[1, 1] == pytest.approx(blurred.insertion.mean())


def test_the_choice_is_a_point_for_each_map() -> None:
    evaluation = made_evaluation(replace(MIDDLE, extras=True))
    figure = faithfulness_by_stability(evaluation)
    assert [axes.get_title(loc="left") for axes in figure.axes] == list(MIDDLE.attributions)
    assert (
        len({axes.get_xlim() for axes in figure.axes}) == len({axes.get_ylim() for axes in figure.axes}) == 1
    )
    for control, label in ((None, "backward-hook"), ("blurred-none", "blur as smooth as backward-hook")):
        maps = [
            of(evaluation, "backward-hook", "deeplift", layer, control=control)
            for layer in ("layer1", "layer2", "layer3")
        ]
        expected = [(s.phase_stability.mean(), s.insertion.mean() - s.deletion.mean()) for s in maps]
        found = [h.get_xydata()[0] for h in figure.axes[1].lines if h.get_label() == label]
        np.testing.assert_allclose(sorted(map(tuple, found)), sorted(expected))
    random = of(evaluation, None, None, None, control="random")
    level = line(figure, "deeplift", "random")[:, 1]
    np.testing.assert_allclose(level, random.insertion.mean() - random.deletion.mean())
    names = {text.get_text() for axes in figure.axes for text in axes.texts}
    assert names == {"layer1", "layer2", "layer3"}


def test_names_of_close_points_do_not_cover_each_other() -> None:
    panels = panels_of([["a"]], 4)[1]
    axes = panels["a"]
    axes.set(xlim=(0, 1), ylim=(0, 1))
    name_points(axes, {"one": (0.5, 0.5), "far": (0.1, 0.5), "two": (0.52, 0.5), "three": (0.48, 0.49)})
    heights = {text.get_text(): text.get_position()[1] for text in axes.texts}
    close = sorted(heights[name] for name in ("one", "two", "three"))
    assert min(np.diff(close)) >= 0.0499
    assert heights["far"] == 0.5


def test_panels_of_a_metric_have_one_scale() -> None:
    figure = scores_by_layer(made_evaluation(MIDDLE))
    for metric in ("insertion", "deletion"):
        limits = {a.get_ylim() for a in figure.axes if a.get_title(loc="left").endswith(metric)}
        assert len(limits) == 1


def test_curves_are_those_of_the_best_layer() -> None:
    evaluation = made_evaluation(MIDDLE)
    maps = [of(evaluation, "none", "gradient", layer) for layer in ("layer1", "layer2", "layer3")]
    highest = max(maps, key=lambda s: s.insertion.mean())
    lowest = min(maps, key=lambda s: s.deletion.mean())
    figure = draw_curves(evaluation)
    inserted = line(figure, "gradient: insertion", f"none, {highest.kind.layer}")
    deleted = line(figure, "gradient: deletion", f"none, {lowest.kind.layer}")
    np.testing.assert_allclose(inserted[:, 1], highest.insertion_curves.mean(axis=0))
    np.testing.assert_allclose(deleted[:, 1], lowest.deletion_curves.mean(axis=0))
    assert inserted[0, 0] == 0
    assert inserted[-1, 0] == 100


def test_an_attribution_at_one_layer_only_is_a_single_point() -> None:
    evaluation = made_evaluation(MIDDLE)
    kept = [s for s in evaluation.scored if s.kind.attribution != "deeplift" or s.kind.layer == "layer3"]
    points = line(scores_by_layer(replace(evaluation, scored=kept)), "deeplift: insertion", "none")
    assert points.shape == (1, 2)
    assert round(points[0, 0]) == 2


def test_bars_are_means_over_slides_and_dots_are_slides() -> None:
    evaluation = made_evaluation(replace(SMALL, extras=True))
    axes = stability(evaluation).axes[0]
    found = {
        m: [r.correlation for r in evaluation.stability if (r.method, r.overlap) == (m, 0.5)]
        for m in ("none", "backward-hook")
    }
    heights = [container[1].get_height() for container in axes.containers]
    np.testing.assert_allclose(heights, [np.mean(found["none"]), np.mean(found["backward-hook"])])
    dots = {tuple(sorted(dot.get_ydata())) for dot in axes.lines}
    assert tuple(sorted(found["none"])) in dots


def test_sanity_goes_from_the_head_down_and_survives_constant_maps() -> None:
    evaluation = made_evaluation(replace(SMALL, extras=True))
    stages = [replace(s, spearman=np.full(4, np.nan)) if s.module == "fc" else s for s in evaluation.sanity]
    figure = sanity(replace(evaluation, sanity=stages))
    assert [t.get_text() for t in figure.axes[0].get_xticklabels()][:2] == ["intact", "fc"]
    points = line(figure, "gradient · layer2", "none")
    assert points[0, 1] == pytest.approx(evaluation.sanity[0].spearman.mean())
    assert np.isnan(points[1, 1])


def sheet_images(maps: dict[MapKind, np.ndarray]) -> list:
    patch = np.full((32, 32, 3), 200, np.uint8)
    evaluation = replace(made_evaluation(SMALL), examples=[Example(patch, 0.9, maps)])
    return [image for axes in examples(evaluation).axes for image in axes.images]


def test_each_map_has_its_own_scale_around_zero() -> None:
    ramp = np.linspace(-1, 3, 1024, dtype=np.float32).reshape(32, 32)
    kinds = [MapKind(method, "gradient", "layer2", 8) for method in ("none", "surrogate")]
    images = sheet_images({kinds[0]: ramp, kinds[1]: 1e-6 * ramp})[1:3]
    for image, scale in zip(images, (1, 1e-6), strict=True):
        low, high = image.get_clim()
        assert low == -high
        assert high == pytest.approx(3 * scale, rel=0.03)


def test_maps_that_are_nothing_or_a_single_cell_are_drawn() -> None:
    spot = np.zeros((20, 20), np.float32)
    spot[3, 4] = 1
    kinds = [MapKind(method, "gradient", "layer2", 8) for method in ("none", "surrogate")]
    empty, single = sheet_images({kinds[0]: 0 * spot, kinds[1]: spot})[1:3]
    assert empty.get_clim() == (-1, 1)
    assert single.get_clim() == (-1, 1)


def test_too_many_maps_are_cut_to_one_attribution_and_layer() -> None:
    blank = np.zeros((4, 4), np.float32)
    maps = {MapKind(m, a, *layer): blank for a in ATTRIBUTIONS for layer in LAYERS for m in METHODS}
    patch = np.zeros((8, 8, 3), np.uint8)
    evaluation = replace(made_evaluation(SMALL), examples=[Example(patch, 0.5, maps)])
    assert len(maps) > MOST_MAPS
    titles = [axes.get_title() for axes in examples(evaluation).axes]
    assert [title for title in titles if title] == ["patch", *METHODS]


def test_looks_are_distinct_for_known_and_unknown_methods() -> None:
    look = Look([*METHODS, "mine", "yours"])
    assert len({look.colour(m) for m in look.methods}) == 6
    assert len({look.marker(m) for m in look.methods}) == 6


def test_names_of_layers_are_no_formulas_and_never_too_long() -> None:
    name = "$features$.denseblock3.denselayer24.conv_2"
    evaluation = made_evaluation(replace(SMALL, layers=((name, 8), ("b", 16)), extras=True))
    for plot in plots(evaluation):
        png(plot.figure)
    label = smoothness_by_layer(evaluation).axes[0].get_xticklabels()[0].get_text()
    assert len(label.split("\n")[0]) <= 18
    assert label.startswith("$featu")


def test_the_same_figures_give_the_same_bytes() -> None:
    first, second = (plots(made_evaluation(SMALL)) for _ in range(2))
    for a, b in zip(first, second, strict=True):
        assert png(a.figure) == png(b.figure)


def test_pyplot_and_torch_stay_out() -> None:
    code = (
        "import sys, wsi_saliency.report.outputs as _; "
        "sys.exit(any(name in sys.modules for name in ('torch', 'matplotlib.pyplot')))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False)
    assert done.returncode == 0
