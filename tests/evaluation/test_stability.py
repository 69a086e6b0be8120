from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from tests.helpers.slides import noise, section, write_svs
from wsi_saliency.evaluation.stability import CanvasBox, GridStability, _Lattice, busiest_region
from wsi_saliency.geometry import Canvas, Size
from wsi_saliency.saliency.layers import LayerGeometry
from wsi_saliency.slides.opening import open_slide
from wsi_saliency.slides.tissue import TissueMask

PATCH = 64
CANVAS = Canvas(720, 560, 1.25, 1.25)  # of a slide of 900 × 700 level-0 pixels


def layer(reduction=8, cells=None, centre=0.5):
    cells = cells or PATCH // reduction
    return LayerGeometry(f"1/{reduction}", 1, cells, cells, reduction, centre, centre, 0.0, 0.0)


@pytest.mark.parametrize(
    ("overlap", "total", "move", "shift"),
    [
        (0.5, 1, None, 16),
        (0.5, 32, None, 16),  # of 40
        (0.5, 16, None, 8),
        (0.5, 16, 16, 16),
    ],
)
def test_the_grid_is_moved_by_half_a_stride_but_not_by_the_network_s(overlap, total, move, shift):
    one = replace(layer(), total_stride=total)
    assert _Lattice.of(one, PATCH, overlap, move).shift == shift


def means(reduction):
    """Explain by each cell's mean brightness: what lies where does not matter."""

    def explain(patches):
        n, side = len(patches), PATCH // reduction
        cells = patches.reshape(n, side, reduction, side, reduction, 3)
        return cells.mean((2, 4, 5), dtype=np.float32)

    return explain


def fixed(reduction):
    """Explain by a pattern that is the same for every patch."""
    side = PATCH // reduction
    pattern = np.random.default_rng(1).normal(size=(side, side)).astype(np.float32)
    return lambda patches: np.repeat(pattern[None], len(patches), 0)


def chance(seed=0):
    rng = np.random.default_rng(seed)
    return lambda patches: rng.normal(size=(len(patches), 8, 8)).astype(np.float32)


def blobs(seed=0, h=70, w=90):
    """Tissue in a slide of 900 × 700 level-0 pixels, 10 to a mask pixel."""
    rough = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=(h, w)), 6)
    return TissueMask(rough > 0, 10.0, 10.0)


EVERYWHERE = TissueMask(np.ones((70, 90), bool), 10.0, 10.0)


@pytest.fixture(scope="module")
def slide(tmp_path_factory):
    path = write_svs(tmp_path_factory.mktemp("slides") / "s.svs", [noise(700, 900)], mpp=0.5)
    with open_slide(path) as opened:
        yield opened


def stability(maps, overlap=0.5, tissue=EVERYWHERE, most_pixels=400_000, canvas=CANVAS, move=None):
    """Grid stability of maps by name: what explains patches by them, and their layer."""

    def explain(patches, names):
        return {name: maps[name][0](patches) for name in names}

    layers = {name: layer for name, (_, layer) in maps.items()}
    return GridStability(tissue, canvas, layers, explain, PATCH, overlap, most_pixels, move)


def measured(slide, explain, geometry, **how):
    return stability({"it": (explain, geometry)}, **how).measure(slide)["it"]


# -- the region ------------------------------------------------------------------------------------------


@settings(max_examples=30)
@given(
    seed=st.integers(0, 99), most=st.integers(10_000, 500_000), w=st.integers(70, 720), h=st.integers(70, 560)
)
def test_the_region_has_the_most_tissue_away_from_its_border(seed, most, w, h):
    tissue, canvas = blobs(seed), Canvas(w, h, 1.25, 1.25)
    box = busiest_region(tissue, canvas, most, PATCH)
    x, y, box_w, box_h = box
    assert box_w * box_h <= most
    assert 0 <= x <= canvas.w - box_w
    assert 0 <= y <= canvas.h - box_h
    assert box_w * box_h > min(0.99 * (most - max(box_w, box_h)), 0.99 * canvas.w * canvas.h)

    def inside(x, y):
        left, top = min(PATCH, box_w // 4), min(PATCH, box_h // 4)
        region = canvas.region(x + left, y + top, box_w - 2 * left, box_h - 2 * top)
        return float(tissue.fractions(region.x, region.y, region.w, region.h))

    xs = [*range(0, canvas.w - box_w, PATCH), canvas.w - box_w]
    ys = [*range(0, canvas.h - box_h, PATCH), canvas.h - box_h]
    assert inside(x, y) >= max(inside(x, y) for x in xs for y in ys) - 1e-8


def test_the_region_is_found_in_the_far_corner_and_first_where_there_is_no_tissue():
    mask = np.zeros((70, 90), bool)
    assert busiest_region(TissueMask(mask, 10.0, 10.0), CANVAS, 250**2, PATCH) == CanvasBox(0, 0, 250, 250)
    mask[60:, 80:] = True
    assert busiest_region(TissueMask(mask, 10.0, 10.0), CANVAS, 250**2, PATCH) == CanvasBox(
        470, 310, 250, 250
    )


def test_a_narrow_canvas_gives_a_long_region():
    box = busiest_region(EVERYWHERE, Canvas(100, 5000, 1, 1), 200_000, PATCH)
    assert (box.canvas_w, box.canvas_h) == (100, 2000)


# -- the figure ------------------------------------------------------------------------------------------


def odd(patches):
    """Explain 9 × 9 cells by content and position both, so that every displacement shows."""
    ramp = np.add.outer(np.arange(9), 2 * np.arange(9)).astype(np.float32)
    corner = patches[:, :63, :63].reshape(-1, 9, 7, 9, 7, 3).mean((2, 4, 5), dtype=np.float32)
    return corner + ramp


def reference(slide, test, geometry, explain, stride, shift):
    """Correlate cell by cell in float64, closely following the definition."""
    x0, y0, w, h = test.region
    x, y, region_w, region_h = (1.25 * v for v in test.region)
    whole = slide.read(type(slide.bounds)(x, y, region_w, region_h), Size(w, h))
    r, n = geometry.reduction, geometry.cell_w
    maps = {}

    def blended(i, j, offset):
        """Value of the cell (i, j) of the region, None if a patch over it is not in the region."""
        total = weight = 0.0
        for row in range(-5, 20):
            for column in range(-5, 20):
                left, top = offset + column * stride, offset + row * stride
                a, b = i - top // r, j - left // r
                if not (0 <= a < n and 0 <= b < n):
                    continue
                if left < 0 or top < 0 or left + PATCH > w or top + PATCH > h:
                    return None
                if (left, top) not in maps:
                    maps[left, top] = explain(whole[None, top : top + PATCH, left : left + PATCH])[0]
                hann = math.sin(math.pi * (a + 0.5) / n) ** 2 * math.sin(math.pi * (b + 0.5) / n) ** 2
                total, weight = total + hann * maps[left, top][a, b], weight + hann
        return total / weight if weight else None

    pairs = []
    for i in range(h // r + 1):
        for j in range(w // r + 1):
            left, top = x0 + geometry.centre_x + (j - 0.5) * r, y0 + geometry.centre_y + (i - 0.5) * r
            if test.tissue.fractions(1.25 * left, 1.25 * top, 1.25 * r, 1.25 * r) > 0.5:
                pair = blended(i, j, 0), blended(i, j, shift)
                pairs += [pair] if None not in pair else []
    return np.corrcoef(np.array(pairs).T)[0, 1], len(pairs)


@pytest.mark.parametrize(
    ("overlap", "stride", "move", "shift"),
    [(0.5, 35, None, 14), (0.75, 14, None, 7), (0.2, 49, None, 21), (0, 63, None, 28), (0.5, 35, 22, 21)],
)
def test_equals_the_definition(slide, overlap, stride, move, shift):
    geometry = layer(7, cells=9, centre=2.5)
    test = stability({"it": (odd, geometry)}, overlap, blobs(), most_pixels=62_500, move=move)
    expected, cells = reference(slide, test, geometry, odd, stride, shift)
    assert cells > 200
    assert test.measure(slide)["it"] == pytest.approx(expected, abs=1e-6)


def test_a_pattern_that_repeats_shows_by_moves_of_other_than_its_period(slide):
    def every_32_pixels(patches):
        pattern = np.random.default_rng(2).normal(size=(4, 4)).astype(np.float32)
        return np.repeat(np.tile(pattern, (2, 2))[None], len(patches), 0)

    found = {
        move: measured(slide, every_32_pixels, layer(), overlap=0, move=move) for move in (None, 32, 16, 7)
    }
    assert found[None] == found[32] == pytest.approx(1, abs=1e-6)  # half the stride is 32 pixels
    assert abs(found[16]) < 0.8
    assert math.isnan(found[7])  # less than a cell


@pytest.mark.parametrize("overlap", [0, 0.5, 0.75])
@pytest.mark.parametrize("reduction", [4, 8])
def test_a_map_of_the_tissue_alone_is_stable(slide, reduction, overlap):
    found = measured(slide, means(reduction), layer(reduction), overlap=overlap, tissue=blobs())
    assert found == pytest.approx(1, abs=1e-6)


def test_chance_is_not(slide):
    assert abs(measured(slide, chance(), layer())) < 0.1


@pytest.mark.parametrize("overlap", [0, 0.5])
def test_a_pattern_of_the_patch_is_not(slide, overlap):
    assert measured(slide, fixed(8), layer(), overlap=overlap) < 0.3


def test_more_overlap_averages_chance_out(slide):
    def both(patches):
        return means(8)(patches) + 10 * rng.normal(size=(len(patches), 8, 8)).astype(np.float32)

    rng = np.random.default_rng(0)

    few, many = (measured(slide, both, layer(), overlap=overlap) for overlap in (0.5, 0.75))
    assert 0.05 < few < many - 0.1 < 0.8


def test_maps_of_several_layers_together_are_what_they_are_alone(slide):
    maps = {
        ("means", 4): (lambda p: means(4)(p) + 20 * fixed(4)(p), layer(4)),
        ("means", 8): (lambda p: means(8)(p) + 20 * fixed(8)(p), layer(8)),
        ("pattern", 8): (fixed(8), layer(8)),
        ("odd", 7): (odd, layer(7, cells=9)),
    }
    together = stability(maps, tissue=blobs()).measure(slide)
    for key, one in maps.items():
        assert together[key] == stability({key: one}, tissue=blobs()).measure(slide)[key]
    assert len(set(together.values())) == 4


def test_patches_are_read_once_for_all_maps_on_a_grid_and_counted_beforehand(slide, monkeypatch):
    asked, reads = [], []
    read = type(slide).read
    monkeypatch.setattr(type(slide), "read", lambda self, *a: reads.append(a) or read(self, *a))

    def explain(patches, names):
        asked.append((len(patches), list(names)))
        return dict.fromkeys(names, means(8)(patches))

    def count(*names):
        asked.clear(), reads.clear()
        layers = dict.fromkeys(names, layer())
        test = GridStability(EVERYWHERE, CANVAS, layers, explain, PATCH, 0.5, 90_000)
        told = []
        expected = test.cost
        test.measure(slide, workers=2, progress=told.append)
        assert sum(told) == sum(n * len(together) for n, together in asked) == expected
        assert all(together == list(names) for _, together in asked)
        return expected, len(reads)

    patches, reads_of_one = count("a")
    # 300 × 300 px: 8 × 8 patches, 32 px apart; on the moved grid 7 × 7; all hold a cell that counts
    assert patches == 8 * 8 + 7 * 7
    assert count("a", "b", "c") == (3 * patches, reads_of_one)


def test_patches_without_compared_cells_are_not_explained():
    mask = np.zeros((70, 90), bool)
    mask[30:45, 40:55] = True  # 120 × 120 canvas pixels: 15 × 15 cells
    test = stability({"it": (means(8), layer())}, tissue=TissueMask(mask, 10.0, 10.0))
    assert test.cost < 80
    assert test.cost < stability({"it": (means(8), layer())}).cost / 4


def nothing(patches):
    raise AssertionError("there is nothing to explain")


@pytest.mark.parametrize(
    ("geometry", "how"),
    [
        (layer(32), {"overlap": 0.6}),  # patches advance by a single cell
        (layer(), {"tissue": TissueMask(np.zeros((70, 90), bool), 10.0, 10.0)}),
        (layer(), {"most_pixels": 130**2}),  # too few cells
        (layer(), {"canvas": Canvas(40, 30, 1.25, 1.25)}),  # smaller than a patch
    ],
)
def test_nothing_is_explained_where_nothing_can_be_said(slide, geometry, how):
    test = stability({"it": (nothing, geometry)}, **how)
    assert test.cost == 0
    assert math.isnan(test.measure(slide)["it"])


def test_a_map_that_is_constant_up_to_rounding_has_no_correlation(slide):
    def almost(patches):
        return np.full((len(patches), 8, 8), 0.1, np.float32) + 3e-8 * chance()(patches)

    assert math.isnan(measured(slide, almost, layer(), overlap=0.75))


def test_glass_around_the_tissue_does_not_count(tmp_path):
    path = write_svs(tmp_path / "s.svs", [section(900, 700, (200, 150, 500, 400))], mpp=0.5)
    mask = np.zeros((70, 90), bool)
    mask[15:55, 20:70] = True

    def glass_is_bright(patches):
        found, bright = chance()(patches), means(8)(patches)
        return np.where(bright > 230, bright, found)

    with open_slide(path) as opened:
        assert measured(opened, glass_is_bright, layer()) > 0.9
        assert abs(measured(opened, glass_is_bright, layer(), tissue=TissueMask(mask, 10.0, 10.0))) < 0.2
