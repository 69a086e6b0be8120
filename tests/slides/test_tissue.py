from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage

from tests.helpers.paths import REAL_SLIDES
from tests.helpers.slides import write_svs, write_tiff
from wsi_saliency.geometry import Mpp, Region, Size
from wsi_saliency.slides.opening import open_slide
from wsi_saliency.slides.tissue import TissueMask, tissue_in, tissue_mask

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

SIDE = 320

# Mean colours at 8 µm per pixel: the stains' optical densities spread over cells and gaps.
STAINS = {
    "H&E stroma": (222, 150, 190),
    "eosin-rich": (228, 120, 160),
    "dark tumour nuclei": (95, 62, 125),
    "very dark tumour nuclei": (62, 40, 88),
    "faint eosin": (242, 222, 233),
    "faint haematoxylin": (215, 208, 228),
    "DAB": (150, 105, 70),
    "faint DAB": (226, 213, 198),
    "blue counterstain": (168, 176, 206),
}
GLASS = {
    "white": (255, 255, 255),
    "bright": (244, 243, 243),
    "grey": (205, 205, 205),
    "warm": (240, 232, 214),
    "greenish": (225, 236, 226),
    "bluish": (222, 228, 242),
}
INKS = {"blue": (40, 70, 170), "green": (30, 120, 70), "red": (215, 40, 50), "black": (30, 30, 36)}


def flat(colour: tuple[int, int, int], seed: int = 0, noise: float = 1.0) -> NDArray[np.float64]:
    """A smooth picture with camera noise."""
    rng = np.random.default_rng(seed)
    return np.asarray(colour, float) + rng.normal(0, noise, (SIDE, SIDE, 3))


def stained(
    colour: tuple[int, int, int], glass: tuple[int, int, int] = (250, 250, 250), seed: int = 0
) -> NDArray[np.float64]:
    """Tissue on glass: the stain's amount varies from pixel to pixel and over some, its hue does not."""
    rng = np.random.default_rng(seed)
    fine, coarse = rng.normal(size=(2, SIDE, SIDE))
    coarse = ndimage.gaussian_filter(coarse, 4)
    amount = np.exp(0.25 * fine + 0.25 * coarse / coarse.std())[..., None]
    return np.asarray(np.asarray(glass) * (np.asarray(colour) / 250) ** amount)


def disc(x: int, y: int, radius: int) -> NDArray[np.bool_]:
    rows, columns = np.mgrid[:SIDE, :SIDE]
    return np.asarray((columns - x) ** 2 + (rows - y) ** 2 < radius**2)


def picture(*layers: tuple[NDArray[np.float64], NDArray[np.bool_]]) -> NDArray[np.uint8]:
    """Lay pictures over one another, each where its mask says, softened like an image of them."""
    out = np.zeros((SIDE, SIDE, 3))
    for colours, where in layers:
        share = ndimage.gaussian_filter(where.astype(float), 0.7)[..., None]
        out = out * (1 - share) + colours * share
    return np.clip(np.rint(out), 0, 255).astype(np.uint8)


EVERYWHERE = np.ones((SIDE, SIDE), bool)


def recall_precision(found: NDArray[np.bool_], truth: NDArray[np.bool_]) -> tuple[float, float]:
    return (found & truth).sum() / truth.sum(), (found & truth).sum() / max(found.sum(), 1)


@pytest.mark.parametrize("glass", GLASS)
@pytest.mark.parametrize("stain", STAINS)
def test_stained_tissue_on_glass_is_found(stain: str, glass: str) -> None:
    truth = disc(150, 160, 100)
    rgb = picture((flat(GLASS[glass]), EVERYWHERE), (stained(STAINS[stain], GLASS[glass]), truth))
    recall, precision = recall_precision(tissue_in(rgb), truth)
    assert recall > 0.97
    assert precision > 0.95


@pytest.mark.parametrize("glass", GLASS)
@pytest.mark.parametrize("noise", [0.0, 1.0, 3.0])
def test_empty_slide_has_no_tissue(glass: str, noise: float) -> None:
    rgb = np.clip(np.rint(flat(GLASS[glass], noise=noise)), 0, 255).astype(np.uint8)
    assert not tissue_in(rgb).any()


@pytest.mark.parametrize("stain", STAINS)
def test_slide_without_glass_is_all_tissue(stain: str) -> None:
    rgb = np.clip(np.rint(stained(STAINS[stain])), 0, 255).astype(np.uint8)
    assert tissue_in(rgb).mean() > 0.97


def test_pale_part_of_a_slide_without_glass_stays() -> None:
    left = np.indices((SIDE, SIDE))[1] < SIDE // 2
    rgb = picture((stained(STAINS["dark tumour nuclei"]), EVERYWHERE), (stained(STAINS["faint eosin"]), left))
    assert tissue_in(rgb)[:, : SIDE // 2].mean() > 0.97


@pytest.mark.parametrize("ink", INKS)
def test_marker_is_not_tissue(ink: str) -> None:
    truth = disc(200, 200, 80)
    stroke = disc(90, 90, 80) & ~disc(90, 90, 60)
    rgb = picture(
        (flat(GLASS["bright"]), EVERYWHERE),
        (stained(STAINS["H&E stroma"]), truth),
        (flat(INKS[ink], seed=1, noise=2.5), stroke),
    )
    found = tissue_in(rgb)
    recall, precision = recall_precision(found, truth & ~ndimage.binary_dilation(stroke, iterations=4))
    assert found[stroke].mean() < 0.02
    assert recall > 0.97
    assert precision > 0.95


@pytest.mark.parametrize("glass", ["bright", "warm"])
@pytest.mark.parametrize("border", [(0, 0, 0), (12, 10, 14), (255, 255, 255)])
def test_border_of_the_scan_is_not_tissue(border: tuple[int, int, int], glass: str) -> None:
    truth = disc(170, 160, 80)
    inside = np.zeros((SIDE, SIDE), bool)
    inside[40:-30, 50:-20] = True
    rgb = picture(
        (flat(border, noise=0), EVERYWHERE),
        (flat(GLASS[glass]), inside),
        (stained(STAINS["H&E stroma"]), truth),
    )
    recall, precision = recall_precision(tissue_in(rgb), truth)
    assert recall > 0.97
    assert precision > 0.95


def test_smooth_stain_is_tissue() -> None:
    colloid = disc(160, 160, 60)
    rgb = picture((flat(GLASS["bright"]), EVERYWHERE), (flat((235, 205, 222), seed=1), colloid))
    recall, precision = recall_precision(tissue_in(rgb), colloid)
    assert recall > 0.97
    assert precision > 0.95


def test_smooth_spots_in_a_blue_stain_are_no_marker() -> None:
    blue, spots = (60, 100, 185), np.zeros((SIDE, SIDE), bool)
    for x in range(80, 260, 40):
        spots |= disc(x, 160, 7)
    rgb = picture((stained(blue), EVERYWHERE), (flat(blue, seed=1), spots))
    assert tissue_in(rgb).mean() > 0.99


def test_dust_scratches_and_shadows_are_not_tissue() -> None:
    specks = disc(60, 60, 3) | disc(200, 90, 2)
    scratch = np.abs(np.subtract.outer(np.arange(SIDE), 0.4 * np.arange(SIDE) + 90)) < 1.5
    edge = np.indices((SIDE, SIDE))[0] > SIDE - 20
    shade = np.linspace(0.75, 1, SIDE)[None, :, None]
    rgb = picture(
        (flat(GLASS["bright"]) * shade, EVERYWHERE),
        (flat((120, 80, 110)), specks),
        (flat((130, 128, 126)), scratch),
        (stained((90, 82, 88)), edge),
    )
    assert not tissue_in(rgb).any()


def test_small_holes_are_filled_and_large_ones_are_not() -> None:
    lumen, cavity = disc(110, 160, 6), disc(200, 160, 30)
    tissue = disc(160, 160, 120) & ~lumen & ~cavity
    found = tissue_in(picture((flat(GLASS["bright"]), EVERYWHERE), (stained(STAINS["H&E stroma"]), tissue)))
    assert found[lumen].all()
    assert found[cavity].mean() < 0.2


def slow_fraction(mask: NDArray[np.bool_], x: float, y: float, w: float, h: float) -> float:
    """Sum over mask pixels of tissue times overlap with the box."""
    rows, columns = np.arange(mask.shape[0]), np.arange(mask.shape[1])
    along_x = np.clip(np.minimum(columns + 1, x + w) - np.maximum(columns, x), 0, None)
    along_y = np.clip(np.minimum(rows + 1, y + h) - np.maximum(rows, y), 0, None)
    return float((mask * np.outer(along_y, along_x)).sum() / (w * h))


position = st.floats(-30, 60, allow_nan=False)
length = st.floats(0.05, 80, allow_nan=False)


@given(st.integers(0, 99), position, position, length, length)
def test_fractions_agree_with_overlap_areas(seed: int, x: float, y: float, w: float, h: float) -> None:
    mask = np.random.default_rng(seed).random((13, 17)) < 0.5
    tissue = TissueMask(mask, 2.5, 3.0)
    expected = slow_fraction(mask, x / 2.5, y / 3, w / 2.5, h / 3)
    assert tissue.fractions(x, y, w, h) == pytest.approx(expected, abs=1e-9)


def test_fractions_take_arrays() -> None:
    tissue = TissueMask(np.ones((10, 20), bool), 4.0, 4.0)
    shares = tissue.fractions(np.array([0, 72, -8, 200]), np.array([0, 32, -8, 0]), 16, 16)
    np.testing.assert_allclose(shares, [1, 0.25, 0.25, 0], atol=1e-12)


def test_area_takes_both_pixel_sizes() -> None:
    assert TissueMask(np.ones((10, 20), bool), 4.0, 2.0).area_mm2(Mpp(0.5, 0.25)) == pytest.approx(2e-4)


@pytest.mark.parametrize(("mpp", "expected"), [(0.5, 16), (8.0, 1), (16.8, 1)])
def test_mask_is_as_fine_as_asked_but_not_finer_than_the_slide(
    tmp_path: Path, mpp: float, expected: int
) -> None:
    rgb = picture((flat(GLASS["bright"]), EVERYWHERE), (stained(STAINS["H&E stroma"]), disc(160, 160, 90)))
    with open_slide(write_svs(tmp_path / "s.svs", [rgb], mpp=mpp)) as slide:
        tissue = tissue_mask(slide)
    assert tissue.mask.shape == (SIDE // expected, SIDE // expected)
    assert (tissue.pixel_w, tissue.pixel_h) == (expected, expected)
    assert tissue.mask.mean() == pytest.approx(np.pi * 90**2 / SIDE**2, abs=0.002 + 0.007 * expected)


def test_mask_is_bounded_and_needs_no_mpp(tmp_path: Path) -> None:
    rgb = picture((flat(GLASS["bright"]), EVERYWHERE), (stained(STAINS["H&E stroma"]), disc(160, 160, 90)))
    path = write_tiff(tmp_path / "s.tif", [rgb[:, :200]], mpp=None)
    with open_slide(path, mpp_required=False) as slide:
        tissue = tissue_mask(slide, max_pixels=4000)
    assert tissue.mask.size <= 4000 * 1.02
    assert tissue.mask.shape[1] * tissue.pixel_w == pytest.approx(200)
    assert tissue.mask.shape[0] * tissue.pixel_h == pytest.approx(SIDE)


def real(name: str) -> Path:
    path = REAL_SLIDES / name
    if not path.exists():
        pytest.skip(f"{path.name} is not there")
    return path


def test_real_skin() -> None:
    with open_slide(real("cmu-1-small-region.svs")) as slide:
        tissue = tissue_mask(slide)
    assert tissue.fractions(900, 1500, 200, 800) > 0.99  # dermis
    assert tissue.fractions(1150, 2150, 150, 250) > 0.99  # follicle
    assert tissue.fractions(0, 1300, 450, 1600) == 0  # glass
    assert tissue.mask.mean() == pytest.approx(0.40, abs=0.03)


def test_real_lymph_nodes() -> None:
    with open_slide(real("tumor_001aaf.tif"), mpp=7.8) as slide:
        tissue = tissue_mask(slide)
    assert tissue.fractions(1900, 3900, 300, 300) > 0.99  # node
    assert tissue.fractions(0, 5300, 3072, 1868) < 1e-3  # grey glass with scratches and a coverslip edge
    assert tissue.fractions(0, 0, 3072, 1500) < 1e-3  # label side: black crosses, hair, edges, filling


def test_real_bone_marrow_in_blue_is_not_taken_for_ink() -> None:
    with open_slide(real("jpeg.dicom")) as slide:
        tissue = tissue_mask(slide)
        assert slide.read(Region(0, 0, 957, 715), Size(957, 715)).shape == (715, 957, 3)
    assert tissue.fractions(560, 0, 120, 120) > 0.9  # cells
    assert tissue.fractions(340, 120, 40, 30) < 0.05  # fat
    assert tissue.fractions(440, 500, 60, 40) < 0.05  # black bone
