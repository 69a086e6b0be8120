from __future__ import annotations

import numpy as np
import pytest

from wsi_saliency.report.patch_sheet import MOST, patch_sheet

WRONG = (217, 95, 2)


def sheet_of(scores, wrong=None):
    """A sheet of patches whose red is their number; returns the reds in the order in which they are shown."""
    n = len(scores)
    patches = np.zeros((n, 16, 16, 3), np.uint8)
    patches[..., 0] = np.arange(n)[:, None, None] + 1
    wrong = np.zeros(n, bool) if wrong is None else wrong
    image = np.asarray(patch_sheet(patches, np.array(scores), ["folder"] * n, wrong, "title"))
    dark = (image[..., 1] == 0) & (image[..., 2] == 0) & (image[..., 0] > 0) & (image[..., 0] <= n)
    shown = {}
    for y, x in np.argwhere(dark):
        shown.setdefault(int(image[y, x, 0]) - 1, (y, x))
    return image, sorted(shown, key=lambda i: shown[i])


@pytest.mark.parametrize("n", [1, 3, 20])
def test_patches_stand_in_the_order_of_their_scores(n):
    scores = np.random.default_rng(0).permutation(n) / n
    _, order = sheet_of(scores)
    assert order == np.argsort(-scores).tolist()


def test_of_many_some_are_shown_with_both_ends():
    scores = np.linspace(0, 1, 200)
    _, order = sheet_of(scores)
    assert len(order) == MOST
    assert (order[0], order[-1]) == (199, 0)
    assert set(np.diff(order)) <= {-4, -5}


def test_wrong_ones_have_a_frame():
    image, _ = sheet_of([0.1, 0.9])
    assert not (image == WRONG).all(-1).any()
    image, _ = sheet_of([0.1, 0.9], np.array([True, False]))
    rows, columns = np.nonzero((image == WRONG).all(-1))
    assert columns.min() > 144  # the lower score stands second
    assert np.ptp(rows) == np.ptp(columns) == 144 + 2 * 5 - 1
