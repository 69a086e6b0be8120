from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image

from wsi_saliency.errors import OutputError
from wsi_saliency.geometry import Mpp, Placement, Size
from wsi_saliency.heatmap import overview
from wsi_saliency.heatmap.ome_zarr import Heatmap, HeatmapWriter
from wsi_saliency.heatmap.overview import (
    is_signed,
    length_label,
    map_on_thumbnail,
    nice_length_um,
    write_overview,
)
from wsi_saliency.heatmap.pyramid import HeatmapInfo, Window

SLIDE = Size(2400, 1600)
THUMBNAIL = Size(300, 200)


def heatmap_of(path: Path, cells: np.ndarray, placement: Placement, name: str = "s.svs") -> Heatmap:
    info = HeatmapInfo(name, SLIDE, Mpp(0.5, 0.5), placement, "gradient · none · layer2 · tumour")
    writer = HeatmapWriter.create(path / "s.ome.zarr", Size(cells.shape[1], cells.shape[0]), info)
    writer.write_rows(0, cells.astype(np.float32))
    return writer.finish()


def glass(size: Size = THUMBNAIL) -> np.ndarray:
    return np.full((size.h, size.w, 3), 240, np.uint8)


@pytest.mark.parametrize("f", [1.0, 3.0, 8.0, 31.7, 90.0])
@pytest.mark.parametrize("where", [(0.13, 0.81), (0.5, 0.5), (0.93, 0.07)])
def test_a_hot_cell_lies_on_the_pixel_under_its_middle(
    tmp_path: Path, f: float, where: tuple[float, float]
) -> None:
    placement = Placement(-0.4 * f, 0.3 * f, f, f * 1.01)
    cells = np.zeros((int(1600 / f) + 1, int(2400 / f) + 1), np.float32)
    cell_x, cell_y = int(where[0] * cells.shape[1]), int(where[1] * cells.shape[0])
    cells[cell_y, cell_x] = 1
    sampled = map_on_thumbnail(heatmap_of(tmp_path, cells, placement), THUMBNAIL)
    x, y = placement.centre(cell_x, cell_y)
    rows, columns = np.arange(200) + 0.5, np.arange(300) + 0.5
    centre_x = (sampled.sum(axis=0) * columns).sum() / sampled.sum()
    centre_y = (sampled.sum(axis=1) * rows).sum() / sampled.sum()
    # Cells smaller than a pixel are shown by a coarser level, whose cells are at most two pixels.
    assert centre_x == pytest.approx(x / 8, abs=0.5 if f >= 8 else 1)
    assert centre_y == pytest.approx(y / 8, abs=0.5 if f >= 8 else 1)


def test_a_linear_map_is_sampled_exactly(tmp_path: Path) -> None:
    placement = Placement(-10, -20, 16, 16)
    cell_y, cell_x = np.mgrid[0:110, 0:160]
    x, y = placement.centre(cell_x, cell_y)
    sampled = map_on_thumbnail(heatmap_of(tmp_path, 1 + x + 2 * y, placement), THUMBNAIL)
    pixel_y, pixel_x = np.mgrid[0:200, 0:300]
    np.testing.assert_allclose(sampled, 1 + (pixel_x + 0.5) * 8 + 2 * (pixel_y + 0.5) * 8, rtol=1e-5)


def test_outside_the_map_is_zero(tmp_path: Path) -> None:
    sampled = map_on_thumbnail(
        heatmap_of(tmp_path, np.ones((10, 10)), Placement(800, 400, 80, 80)), THUMBNAIL
    )
    assert sampled[100, 150] == 1
    assert not sampled[:40].any()
    assert not sampled[:, :90].any()
    assert not sampled[:, 210:].any()


def picture(path: Path, heatmap: Heatmap, **options: object) -> np.ndarray:
    write_overview(path / "overview.png", glass(), heatmap, **options)  # type: ignore[arg-type]
    return np.asarray(Image.open(path / "overview.png").convert("RGB")).astype(int)


def overlay_panel(pixels: np.ndarray) -> np.ndarray:
    box = overview._layout(THUMBNAIL).overlay
    return pixels[round(box.y) : round(box.y + box.h), round(box.x) : round(box.x + box.w)]


def test_the_picture_shows_the_hot_spot_at_its_place(tmp_path: Path) -> None:
    cells = np.full((200, 300), 1e-3)
    cells[105:145, 205:245] = 1
    panel = overlay_panel(picture(tmp_path, heatmap_of(tmp_path, cells, Placement(0, 0, 8, 8))))
    colourful = np.ptp(panel, axis=2)
    rows, columns = np.nonzero(colourful > 60)
    assert columns.mean() / panel.shape[1] == pytest.approx(225 / 300, abs=0.005)
    assert rows.mean() / panel.shape[0] == pytest.approx(125 / 200, abs=0.005)


def test_the_map_is_shown_only_where_it_was_computed(tmp_path: Path) -> None:
    computed = np.zeros((200, 300), bool)
    computed[:, :150] = True
    heatmap = heatmap_of(tmp_path, np.random.default_rng(0).random((200, 300)), Placement(0, 0, 8, 8))
    panel = overlay_panel(picture(tmp_path, heatmap, computed=computed))
    colourful = np.ptp(panel, axis=2)
    assert colourful[:, : int(panel.shape[1] * 0.45)].mean() > 40
    assert colourful[5:-5, int(panel.shape[1] * 0.55) : -5].max() < 5


def test_signs_have_their_own_colours(tmp_path: Path) -> None:
    cells = np.ones((200, 300))
    cells[:, 150:] = -1
    panel = overlay_panel(picture(tmp_path, heatmap_of(tmp_path, cells, Placement(0, 0, 8, 8))))
    positive, negative = panel[50, 100], panel[50, -100]
    assert positive[0] > positive[2] + 50
    assert negative[2] > negative[0] + 50


@pytest.mark.parametrize(
    ("start", "end", "signed"),
    [(-1, 1, True), (-0.1, 1, True), (-0.09, 1, False), (0, 1, False), (-2, -1, True)],
)
def test_a_map_is_signed_when_its_negative_part_is_substantial(
    start: float, end: float, signed: bool
) -> None:
    assert is_signed(Window(start, end, start, end)) is signed


@pytest.mark.parametrize("size", [Size(300, 200), Size(40, 900), Size(1200, 50), Size(1, 1)])
def test_the_picture_has_a_bounded_size_for_every_shape(tmp_path: Path, size: Size) -> None:
    heatmap = heatmap_of(tmp_path, np.zeros((200, 300)), Placement(0, 0, 8, 8))
    write_overview(tmp_path / "overview.png", glass(size), heatmap)
    with Image.open(tmp_path / "overview.png") as image:
        assert max(image.size) <= overview.LONGEST_PX


def test_a_busy_slide_gives_a_smaller_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    heatmap = heatmap_of(tmp_path, np.zeros((200, 300)), Placement(0, 0, 8, 8))
    thumbnail = np.random.default_rng(0).integers(0, 255, (400, 600, 3), np.uint8)
    monkeypatch.setattr(overview, "MAX_BYTES", 500_000)
    write_overview(tmp_path / "overview.png", thumbnail, heatmap)
    assert (tmp_path / "overview.png").stat().st_size <= 500_000


def test_any_slide_name_can_be_drawn(tmp_path: Path) -> None:
    name = "$\\frac{" + "切片 $ \x01 \udcff " * 30 + ".svs"
    heatmap = heatmap_of(tmp_path, np.zeros((200, 300)), Placement(0, 0, 8, 8), name)
    write_overview(tmp_path / "overview.png", glass(), heatmap)


def test_the_same_map_gives_the_same_file(tmp_path: Path) -> None:
    heatmap = heatmap_of(tmp_path, np.random.default_rng(0).random((200, 300)), Placement(0, 0, 8, 8))
    files = [tmp_path / "a.png", tmp_path / "b.png"]
    for path in files:
        write_overview(path, glass(), heatmap, title="title", label="mean gradient")
    assert files[0].read_bytes() == files[1].read_bytes()


def test_a_missing_folder_is_one_line(tmp_path: Path) -> None:
    heatmap = heatmap_of(tmp_path, np.zeros((200, 300)), Placement(0, 0, 8, 8))
    with pytest.raises(OutputError, match=r"overview\.png: cannot be written \(No such file"):
        write_overview(tmp_path / "missing" / "overview.png", glass(), heatmap)


@given(st.floats(1e-3, 1e6))
@example(999999.9999999999)
@example(1000.0)
def test_a_nice_length_is_the_largest_that_fits(longest: float) -> None:
    length = nice_length_um(longest)
    assert longest / 2.5 * 0.999 <= length <= longest * (1 + 1e-9)
    assert f"{length:.6e}"[0] in "125"


@pytest.mark.parametrize(
    ("length", "label"), [(0.5, "0.5 µm"), (200, "200 µm"), (1000, "1 mm"), (20_000, "20 mm")]
)
def test_lengths_from_a_millimetre_on_are_in_millimetres(length: float, label: str) -> None:
    assert length_label(length) == label


def test_pyplot_stays_out() -> None:
    code = "import sys, wsi_saliency.heatmap.overview as _; sys.exit('matplotlib.pyplot' in sys.modules)"
    assert (
        subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[1], check=False).returncode
        == 0
    )
