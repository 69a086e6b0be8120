from __future__ import annotations

import math

import pytest

from wsi_saliency.geometry import Mpp
from wsi_saliency.slides.spacing import Spacing, spacing_of, spacing_of_plain_tiff


def test_mpp_given_wins() -> None:
    assert spacing_of(0.3, Mpp(0.5, 0.5), 20) == Spacing(Mpp(0.3, 0.3), "--mpp")


def test_mpp_of_the_file_wins_over_the_objective() -> None:
    assert spacing_of(None, Mpp(0.5, 0.6), 40) == Spacing(Mpp(0.5, 0.6), "the file")


def test_mpp_estimated_says_so() -> None:
    spacing = spacing_of(None, None, 40)
    assert spacing.mpp == Mpp(0.25, 0.25)
    assert spacing.source == "estimated from the objective power 40×"
    assert "--mpp" in spacing.warnings[0]


@pytest.mark.parametrize("stated", [None, Mpp(0, 0), Mpp(math.nan, 0.5), Mpp(-1, -1), Mpp(math.inf, 1)])
@pytest.mark.parametrize("power", [None, 0.0, math.nan])
def test_mpp_of_no_use_is_none(stated: Mpp | None, power: float | None) -> None:
    assert spacing_of(None, stated, power).mpp is None


@pytest.mark.parametrize("mpp", [0.0252, 62.0])
def test_implausible_mpp_is_used_with_a_warning(mpp: float) -> None:
    spacing = spacing_of(None, Mpp(mpp, mpp), None)
    assert spacing.mpp == Mpp(mpp, mpp)
    assert "0.05–20" in spacing.warnings[0]
    assert "--mpp" in spacing.warnings[0]


@pytest.mark.parametrize("power", [1e-300, 1e300, 0.01])
def test_impossible_objective_gives_no_estimate(power: float) -> None:
    spacing = spacing_of(None, None, power)
    assert spacing.mpp is None
    assert "not believed" in spacing.warnings[0]


@pytest.mark.parametrize("dpi", [72, 96, 300])
def test_resolution_of_a_screen_or_printer_is_not_believed(dpi: int) -> None:
    spacing = spacing_of_plain_tiff(None, Mpp(25400 / dpi, 25400 / dpi))
    assert spacing.mpp is None
    assert "not believed" in spacing.warnings[0]
    assert spacing_of_plain_tiff(0.5, Mpp(353, 353)) == Spacing(Mpp(0.5, 0.5), "--mpp")
