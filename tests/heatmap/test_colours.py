from __future__ import annotations

import numpy as np
import pytest
from matplotlib import colormaps

from wsi_saliency.heatmap.colours import OPAQUE, ColourScale

MAGNITUDES, DIVERGING = ColourScale.magnitudes(2, 6), ColourScale.diverging(4)


def colour(scale: ColourScale, value: float) -> np.ndarray:
    return scale(np.array([value], np.float32))[0].astype(int)


@pytest.mark.parametrize("share", np.linspace(0, 1, 23))
def test_the_colours_are_those_of_the_known_maps(share: float) -> None:
    magma = 255 * np.array(colormaps["magma"](0.15 + 0.8 * share)[:3])
    blue_red = 255 * np.array(colormaps["RdBu_r"](0.06 + 0.88 * share)[:3])
    np.testing.assert_allclose(colour(MAGNITUDES, 2 + 4 * share)[:3], magma, atol=4)
    np.testing.assert_allclose(colour(DIVERGING, 8 * share - 4 + 1e-6)[:3], blue_red, atol=4)


@pytest.mark.parametrize("share", [0, 0.1, 0.5, 1])
def test_the_opacity_grows_with_the_magnitude(share: float) -> None:
    opacity = 255 * OPAQUE * share**0.6
    assert colour(MAGNITUDES, 2 + 4 * share)[3] == pytest.approx(opacity, abs=1.5)
    for sign in (-1, 1):
        assert colour(DIVERGING, sign * 4 * share)[3] == pytest.approx(opacity, abs=1.5)


def test_values_beyond_the_ends_have_their_colours() -> None:
    for scale in (MAGNITUDES, DIVERGING):
        assert (colour(scale, 1e30) == scale.table[-1]).all()
        assert (colour(scale, -1e30) == scale.table[0]).all()


def test_what_was_not_computed_is_transparent() -> None:
    scale = ColourScale.magnitudes(-3, -1)
    values = np.array([[0, -1], [-2, -0.0]], np.float32)
    assert ((scale(values)[..., 3] == 0) == (values == 0)).all()


@pytest.mark.parametrize("limit", [1e-44, 1e38])
def test_extreme_ranges_have_colours(limit: float) -> None:
    scale = ColourScale.diverging(limit)
    values = np.array([-limit, limit / 2, limit], np.float32)
    assert scale(values)[0].tolist() == scale.table[0].tolist()
    assert scale(values)[2].tolist() == scale.table[-1].tolist()
