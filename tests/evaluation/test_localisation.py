from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsi_saliency.evaluation import localisation as module
from wsi_saliency.evaluation.localisation import localise, patch_probability_map, pixel_scores


def slow_auroc(values, positive):
    """Play every positive against every negative."""
    won = [1.0 if p > n else 0.5 if p == n else 0.0 for p in values[positive] for n in values[~positive]]
    return sum(won) / len(won)


def slow_average_precision(values, positive):
    """Lower the threshold over the distinct values; sum the precision over the steps of recall."""
    total, recall = 0.0, 0.0
    for threshold in sorted(set(values.tolist()), reverse=True):
        above = values >= threshold
        precision = positive[above].mean()
        total += (positive[above].sum() / positive.sum() - recall) * precision
        recall = positive[above].sum() / positive.sum()
    return total


def random_pixels(seed, n, levels):
    """Values with many ties, or none at all, both signs, and at least one pixel of each class."""
    rng = np.random.default_rng(seed)
    values = rng.normal(size=n) if levels is None else rng.integers(-levels, levels, n) / 4
    positive = rng.random(n) < rng.uniform()
    positive[0], positive[-1] = True, False
    return values.astype(np.float32), positive


pixels = st.builds(
    random_pixels, st.integers(0, 10**6), st.integers(2, 60), st.sampled_from([None, 1, 3, 10])
)


@given(pixels)
def test_scores_are_those_of_the_definition(pixels):
    auroc, average_precision = pixel_scores(*pixels)
    assert auroc == pytest.approx(slow_auroc(*pixels), abs=1e-12)
    assert average_precision == pytest.approx(slow_average_precision(*pixels), abs=1e-12)


@given(pixels, st.integers(1, 9))
def test_scores_do_not_depend_on_order_or_chunks(pixels, chunk):
    values, positive = pixels
    order = np.random.default_rng(chunk).permutation(len(values))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_CHUNK", chunk)
        again = pixel_scores(values[order], positive[order])
    assert again == pytest.approx(pixel_scores(values, positive), abs=1e-13)


@given(pixels)
def test_the_scores_of_the_opposite_map_are_mirrored(pixels):
    values, positive = pixels
    assert pixel_scores(-values, positive)[0] == pytest.approx(
        1 - pixel_scores(values, positive)[0], abs=1e-13
    )


def test_scores_in_closed_form():
    positive = np.array([True, True, False, False, False])
    assert pixel_scores(np.array([5, 4, 3, 2, 1], np.float32), positive) == (1, 1)
    assert pixel_scores(np.array([1, 2, 3, 4, 5], np.float32), positive) == (
        0,
        pytest.approx((1 / 4 + 2 / 5) / 2),
    )
    assert pixel_scores(np.full(5, 7, np.float32), positive) == (0.5, pytest.approx(2 / 5))
    assert pixel_scores(np.array([1, 0, 1, 0, -np.inf]), positive) == pytest.approx(
        (4 / 6, (1 / 2 + 2 / 4) / 2)
    )


@pytest.mark.parametrize("n", [0, 3])
@pytest.mark.parametrize("annotated", [False, True])
def test_one_class_alone_has_no_scores(n, annotated):
    assert all(math.isnan(score) for score in pixel_scores(np.ones(n, np.float32), np.full(n, annotated)))


def test_neighbouring_float64_values_stay_apart():
    values, positive = np.array([np.nextafter(1, 2), 1.0]), np.array([True, False])
    assert pixel_scores(values, positive) == (1, 1)


def test_the_pixels_are_left_as_they_were():
    values, positive = random_pixels(3, 50, None)
    before = values.copy()
    pixel_scores(values, positive)
    assert (values == before).all()


@pytest.mark.parametrize("where", [0, 1])
def test_a_map_that_is_nan_has_no_scores(where):
    values = np.array([0.5, 0.25, 1, 2], np.float32)
    values[where] = np.nan
    with pytest.raises(ValueError, match="NaN"):
        pixel_scores(values, np.array([True, False, True, False]))


# --- maps


def test_only_the_tissue_counts():
    rng = np.random.default_rng(0)
    values = rng.normal(size=(20, 30)).astype(np.float32)
    positive, tissue = rng.random((20, 30)) < 0.3, rng.random((20, 30)) < 0.5
    found = localise(values, positive, tissue)
    assert found.auroc == pytest.approx(slow_auroc(values[tissue], positive[tissue]))
    assert found.average_precision == pytest.approx(slow_average_precision(values[tissue], positive[tissue]))
    assert found.annotated == pytest.approx(positive[tissue].mean())
    elsewhere = np.where(tissue, values, np.nan).astype(np.float32)
    assert localise(elsewhere, positive | ~tissue, tissue) == found


def test_the_pointing_game():
    values = np.zeros((3, 4), np.float32)
    positive = np.zeros((3, 4), bool)
    positive[1, 1:3] = True
    tissue = np.ones((3, 4), bool)
    values[1, 2], values[0, 0] = 3, 2
    assert localise(values, positive, tissue).hit
    tissue[1, 2] = False
    assert not localise(values, positive, tissue).hit


def test_of_equal_values_the_first_in_raster_order_points():
    values = np.zeros((3, 3), np.float32)
    values[0, 2] = values[1, 0] = values[2, 1] = 1
    tissue = np.ones((3, 3), bool)
    first, last = np.zeros((2, 3, 3), bool)
    first[0, 2] = last[2, 1] = last[1, 0] = True
    assert localise(values, first, tissue).hit
    assert not localise(values, last, tissue).hit


def test_nothing_to_tell_apart():
    values, yes, no = np.ones((2, 2), np.float32), np.ones((2, 2), bool), np.zeros((2, 2), bool)
    for positive, tissue, hit, annotated in ((no, yes, False, 0), (yes, yes, True, 1), (yes, no, False, 0)):
        found = localise(values, positive, tissue)
        assert math.isnan(found.auroc)
        assert math.isnan(found.average_precision)
        assert (found.hit, found.annotated) == (hit, annotated)


def test_maps_of_other_shapes_are_refused():
    with pytest.raises(ValueError, match="one lattice"):
        localise(np.ones((2, 3), np.float32), np.ones((3, 2), bool), np.ones((2, 3), bool))


# --- patch probabilities


def slow_map(boxes, probabilities, width, height, x0, y0, fx, fy):
    result = np.zeros((height, width))
    for j in range(height):
        for i in range(width):
            x, y = (
                Fraction(o) + (k + Fraction(1, 2)) * Fraction(f) for o, k, f in ((x0, i, fx), (y0, j, fy))
            )
            over = [
                p
                for (bx, by, w, h), p in zip(boxes.tolist(), probabilities, strict=True)
                if bx <= x < bx + w and by <= y < by + h
            ]
            result[j, i] = np.mean(over) if over else 0
    return result


@given(
    st.integers(0, 10**6), st.integers(0, 12), st.sampled_from([1, 3, 50]), st.sampled_from([0.5, 1, 2.25])
)
def test_a_cell_is_the_mean_of_the_patches_over_its_centre(seed, n, band_rows, fx):
    rng = np.random.default_rng(seed)
    boxes = np.hstack([rng.integers(-8, 20, (n, 2)), rng.integers(1, 15, (n, 2))]) / 2
    probabilities = rng.random(n)
    lattice = 11, 9, -1.25, 0.5, fx, 1.0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_BAND_CELLS", band_rows * 11)
        found = patch_probability_map(boxes, probabilities, *lattice)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, slow_map(boxes, probabilities, *lattice), rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("probability", [0.1, 1e-9])
def test_equal_patches_give_exactly_equal_cells(probability):
    """Thousands of other patches on the way leave no rounding behind that would break ties."""
    rng = np.random.default_rng(1)
    boxes = np.hstack([rng.integers(0, 160, (3000, 2)), np.full((3000, 2), 32)])
    boxes = np.vstack([boxes, [[220, 0, 20, 200], [250, 90, 20, 90], [250, 90, 20, 90], [250, 90, 20, 90]]])
    probabilities = np.append(rng.random(3000), [probability] * 4)
    found = patch_probability_map(boxes, probabilities, 300, 200, 0, 0, 1, 1)
    equal = np.unique([*found[:, 220:240].ravel(), *found[90:180, 250:270].ravel()])
    assert equal.tolist() == pytest.approx([probability], rel=1e-6)
    assert not found[:, 192:220].any()
    assert not found[192:, :220].any()


def test_certain_patches_do_not_overflow():
    found = patch_probability_map(np.tile([0, 0, 4, 4], (1000, 1)), np.ones(1000), 4, 4, 0, 0, 1, 1)
    assert (found == 1).all()


@pytest.mark.parametrize("probabilities", [[0.5], [0.5, 1.1], [-0.1, 0.5], [0.5, np.nan]])
def test_each_box_needs_a_probability(probabilities):
    with pytest.raises(ValueError, match="2 boxes"):
        patch_probability_map([[0, 0, 4, 4], [4, 0, 4, 4]], probabilities, 8, 8, 0, 0, 1, 1)
