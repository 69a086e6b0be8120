from __future__ import annotations

import numpy as np

from tests.helpers.results import Planted
from wsi_saliency.heatmap.strongest import apart, strongest_patches


def test_chosen_patches_have_nothing_in_common():
    boxes = np.array([[x, y, 64, 64] for y in range(0, 256, 32) for x in range(0, 256, 32)], float)
    strengths = np.random.default_rng(0).random(len(boxes))
    chosen = apart(boxes, strengths, 5)
    assert chosen[0] == strengths.argmax()
    assert list(strengths[chosen]) == sorted(strengths[chosen], reverse=True)
    for i, a in enumerate(chosen):
        for b in chosen[:i]:
            assert (np.abs(boxes[a, :2] - boxes[b, :2]) >= 64).any()
    assert apart(np.empty((0, 4)), np.empty(0), 5) == []


def test_each_map_and_target_has_its_own_strongest(tmp_path):
    planted = Planted(targets=("normal", "tumour"), classes=("normal", "tumour"))
    boxes = [(100 * k, 0, 64, 64) for k in range(4)]
    strengths = np.random.default_rng(1).random((4, 4))  # of two maps, for two targets
    tiles = [
        (box, (0.1 * k, 1 - 0.1 * k), [v for value in row for v in (0, value)])
        for k, (box, row) in enumerate(zip(boxes, strengths, strict=True))
    ]
    result = planted.write(tmp_path / "r", [np.ones((2, 20, 20)), np.ones((2, 20, 20))], tiles)
    chosen = strongest_patches(result, 3)
    kinds = [(found.spec, channel) for found in result.maps for channel in range(2)]
    assert list(chosen) == kinds
    for number, kind in enumerate(kinds):
        order = np.argsort(-strengths[:, number])[:3]
        assert [(p.x, p.y, p.w, p.h) for p in chosen[kind]] == [boxes[k] for k in order]
        assert [p.value for p in chosen[kind]] == list(strengths[order, number])
        np.testing.assert_allclose(
            [p.probability for p in chosen[kind]], [[0.1 * k, 1 - 0.1 * k][kind[1]] for k in order]
        )


def test_without_patches_none_is_strongest(tmp_path):
    result = Planted().write(tmp_path / "r", [np.zeros((1, 20, 20))])
    assert list(strongest_patches(result, 3).values()) == [[]]
