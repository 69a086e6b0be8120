from __future__ import annotations

import io
import subprocess
import sys
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from tests.helpers.paths import ROOT
from wsi_saliency.errors import OutputError
from wsi_saliency.geometry import Mpp, Placement, Region, Size
from wsi_saliency.heatmap import overview
from wsi_saliency.heatmap.colours import ColourScale
from wsi_saliency.heatmap.ome_zarr import Heatmap, HeatmapWriter
from wsi_saliency.heatmap.overview import (
    Predictions,
    is_signed,
    map_on_region,
    map_on_thumbnail,
    thumbnail_size,
    write_overview,
)
from wsi_saliency.heatmap.pyramid import HeatmapInfo, Window

if TYPE_CHECKING:
    from pathlib import Path

SLIDE = Size(2400, 1600)
THUMBNAIL = Size(300, 200)


def heatmap_of(path: Path, cells: np.ndarray, placement: Placement, name: str = "s.svs") -> Heatmap:
    info = HeatmapInfo(name, SLIDE, Mpp(0.5, 0.5), placement, ("gradient · none · layer2 · tumour",))
    writer = HeatmapWriter.create(path / "s.ome.zarr", Size(cells.shape[1], cells.shape[0]), info)
    writer.write_rows(0, cells[None].astype(np.float32))
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


@pytest.mark.parametrize("region", [(0, 0, 2400, 1600), (-300, 900, 700, 1100), (37.3, 11.9, 50.5, 20.1)])
def test_a_map_is_sampled_as_scipy_does_it(tmp_path: Path, region: tuple[float, float, float, float]) -> None:
    cells = np.random.default_rng(0).normal(size=(70, 110))
    placement = Placement(12.3, -7.7, 21.3, 20.9)
    heatmap, box, size = heatmap_of(tmp_path, cells, placement), Region(*region), Size(223, 151)
    assert size.w * placement.fx >= box.w, "the finest level is the right one"
    at_y = (box.y + (np.arange(size.h) + 0.5) * box.h / size.h - placement.y0) / placement.fy - 0.5
    at_x = (box.x + (np.arange(size.w) + 0.5) * box.w / size.w - placement.x0) / placement.fx - 0.5
    where = np.meshgrid(at_y, at_x, indexing="ij")
    expected = ndimage.map_coordinates(cells.astype(np.float32), where, order=1, mode="grid-constant")
    np.testing.assert_allclose(map_on_region(heatmap, box, size), expected, rtol=1e-5, atol=1e-6)


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


def panel_of(pixels: np.ndarray, name: str = "overlay") -> np.ndarray:
    box = getattr(overview._layout(SLIDE), name)
    return pixels[box.y : box.y + box.h, box.x : box.x + box.w]


def test_the_picture_shows_the_hot_spot_at_its_place(tmp_path: Path) -> None:
    cells = np.full((200, 300), 1e-3)
    cells[105:145, 205:245] = 1
    panel = panel_of(picture(tmp_path, heatmap_of(tmp_path, cells, Placement(0, 0, 8, 8))))
    rows, columns = np.nonzero(np.ptp(panel, axis=2) > 60)
    assert columns.mean() / panel.shape[1] == pytest.approx(225 / 300, abs=0.005)
    assert rows.mean() / panel.shape[0] == pytest.approx(125 / 200, abs=0.005)


def test_the_slide_is_shown_as_it_is_and_almost_grey_under_the_map(tmp_path: Path) -> None:
    thumbnail = glass()
    thumbnail[:, 150:] = (200, 60, 120)
    write_overview(
        tmp_path / "overview.png",
        thumbnail,
        heatmap_of(tmp_path, np.zeros((200, 300)), Placement(0, 0, 8, 8)),
    )
    pixels = np.asarray(Image.open(tmp_path / "overview.png")).astype(int)
    slide, overlay = panel_of(pixels, "slide"), panel_of(pixels)
    assert slide.shape == overlay.shape
    middle = slide.shape[0] // 2, 3 * slide.shape[1] // 4
    assert slide[middle].tolist() == [200, 60, 120]
    grey = (200 + 60 + 120) / 3
    expected = [0.2 * 255 + 0.68 * grey + 0.12 * colour for colour in (200, 60, 120)]
    np.testing.assert_allclose(overlay[middle], expected, atol=1)


def test_the_map_is_shown_only_where_it_was_computed(tmp_path: Path) -> None:
    cells = np.random.default_rng(0).random((200, 300)) - 3
    cells[:, 150:] = 0
    heatmap = heatmap_of(tmp_path, cells, Placement(0, 0, 8, 8))
    for signed in (True, False, None):
        colourful = np.ptp(panel_of(picture(tmp_path, heatmap, signed=signed)), axis=2)
        assert colourful[:, : int(colourful.shape[1] * 0.45)].mean() > 40
        assert colourful[5:-5, int(colourful.shape[1] * 0.55) : -5].max() < 5


def test_magnitudes_of_both_signs_look_the_same(tmp_path: Path) -> None:
    cells = np.random.default_rng(0).random((200, 300))
    pictures = []
    for name, values in (("plus", cells), ("minus", -cells)):
        (tmp_path / name).mkdir()
        pictures.append(
            picture(tmp_path, heatmap_of(tmp_path / name, values, Placement(0, 0, 8, 8)), signed=False)
        )
    np.testing.assert_array_equal(*pictures)


def test_the_colour_bar_shows_the_colours_of_the_map(tmp_path: Path) -> None:
    cells = np.tile(np.linspace(1, 2, 300), (200, 1))
    pixels = picture(tmp_path, heatmap_of(tmp_path, cells, Placement(0, 0, 8, 8)), signed=False)
    box = overview._layout(SLIDE).bar
    strip = pixels[box.y : box.y + box.h, box.x + box.w // 2]
    scale = ColourScale.magnitudes(0, 1)
    share = np.linspace(1, 0, box.h, dtype=np.float32) + np.float32(1e-9)
    colours = scale(share).astype(float)
    opacity = colours[:, 3:] / 255
    np.testing.assert_allclose(strip, colours[:, :3] * opacity + 255 * (1 - opacity), atol=6)


def test_signs_have_their_own_colours(tmp_path: Path) -> None:
    cells = np.ones((200, 300))
    cells[:, 150:] = -1
    panel = panel_of(picture(tmp_path, heatmap_of(tmp_path, cells, Placement(0, 0, 8, 8))))
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


@pytest.mark.parametrize("signed", [True, False])
def test_a_range_gives_equal_values_of_two_slides_equal_colours(tmp_path: Path, signed: bool) -> None:
    panels = []
    for name, highest in (("weak", 1.0), ("strong", 50.0)):
        (tmp_path / name).mkdir()
        cells = np.tile(np.linspace(0.1, highest, 300), (200, 1))
        cells[:, :100] = 0.5
        heatmap = heatmap_of(tmp_path / name, cells, Placement(0, 0, 8, 8))
        pixels = picture(tmp_path / name, heatmap, signed=signed, value_range=(0.0, 1.0))
        panels.append(panel_of(pixels)[:200, :200])
    np.testing.assert_array_equal(*panels)
    assert np.ptp(panels[0], axis=2).mean() > 20


TEXTS = slice(100, 150)  # rows of the picture in which the predictions stand


def test_a_slide_without_a_positive_patch_stays_dark_and_says_so(tmp_path: Path) -> None:
    cells = np.random.default_rng(0).random((200, 300))
    heatmap = heatmap_of(tmp_path, cells, Placement(0, 0, 8, 8))
    bar = overview._layout(SLIDE).bar
    beside = (slice(bar.y, bar.y + bar.h), slice(bar.x, None))
    bright = picture(tmp_path, heatmap, predictions=Predictions("tumour", 797, 1, 0.51))
    dark = picture(tmp_path, heatmap, predictions=Predictions("tumour", 797, 0, 0.5))
    assert np.ptp(panel_of(bright), axis=2).mean() > 40
    assert np.ptp(panel_of(dark), axis=2).max() < 10  # the ink of the scale bar
    assert bright[beside].min() < 100 < dark[beside].min()
    assert (dark[TEXTS] != bright[TEXTS]).any()
    told = picture(tmp_path, heatmap, predictions=Predictions("tumour", 797, 0, 0.5), value_range=(0.0, 1.0))
    assert np.ptp(panel_of(told), axis=2).mean() > 40


@pytest.mark.parametrize(
    ("probabilities", "words"),
    [
        ([0.1, 0.5, 0.93], "patches predicted as tumour: 1 of 3 · highest probability 0.93"),
        ([0.5, 0.25], "patches predicted as tumour: none of 2 · highest probability 0.5"),
        ([], "nothing on this slide was explained: no tissue was found"),
    ],
)
def test_predictions_in_words(probabilities: list[float], words: str) -> None:
    predictions = Predictions.of("tumour", probabilities)
    assert str(predictions) == words
    assert predictions.positive == sum(p > 0.5 for p in probabilities)


def test_the_words_stand_in_the_picture(tmp_path: Path) -> None:
    heatmap = heatmap_of(tmp_path, np.ones((200, 300)), Placement(0, 0, 8, 8))
    without = picture(tmp_path, heatmap)[TEXTS]
    assert without.min() == 255
    for predictions in (Predictions("tumour", 3, 1, 0.93), Predictions("tumour", 0, 0, None)):
        assert picture(tmp_path, heatmap, predictions=predictions)[TEXTS].min() < 60


SHAPES = [Size(2400, 1600), Size(4000, 90_000), Size(120_000, 5000), Size(40, 9000), Size(30, 20), Size(1, 1)]


@pytest.mark.parametrize("size", SHAPES, ids=str)
def test_the_picture_has_a_bounded_size_for_every_shape(tmp_path: Path, size: Size) -> None:
    info = HeatmapInfo("s.svs", size, Mpp(0.25, 0.25), Placement(0, 0, size.w / 3, size.h / 2), ("gradient",))
    writer = HeatmapWriter.create(tmp_path / "s.ome.zarr", Size(3, 2), info)
    writer.write_rows(0, np.arange(6, dtype=np.float32).reshape(1, 2, 3))
    write_overview(tmp_path / "overview.png", glass(thumbnail_size(size)), writer.finish())
    with Image.open(tmp_path / "overview.png") as image:
        assert max(image.size) <= overview.LONGEST_PX


@pytest.mark.parametrize("size", SHAPES, ids=str)
def test_the_thumbnail_has_the_slides_shape_and_is_enlarged_only_if_tiny(size: Size) -> None:
    shown = thumbnail_size(size)
    scale = max(shown.w / size.w, shown.h / size.h)
    assert shown.w == pytest.approx(size.w * scale, abs=1)
    assert shown.h == pytest.approx(size.h * scale, abs=1)
    assert scale <= 1 or max(shown.w, shown.h) <= 600


def test_a_picture_is_compressed_without_loss() -> None:
    picture = Image.effect_noise((300, 200), 40).convert("RGB")
    content = overview.png(picture)
    assert Image.open(io.BytesIO(content)).tobytes() == picture.tobytes()


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
        write_overview(path, glass(), heatmap, label="mean gradient")
    assert files[0].read_bytes() == files[1].read_bytes()


def test_a_missing_folder_is_one_line(tmp_path: Path) -> None:
    heatmap = heatmap_of(tmp_path, np.zeros((200, 300)), Placement(0, 0, 8, 8))
    with pytest.raises(OutputError, match=r"overview\.png: cannot be written \(No such file"):
        write_overview(tmp_path / "missing" / "overview.png", glass(), heatmap)


def test_drawing_needs_no_matplotlib() -> None:
    code = "import sys, wsi_saliency.heatmap.overview as _; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_the_channel_that_is_asked_for_is_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cells = np.random.default_rng(0).random((2, 200, 300)).astype(np.float32)
    (tmp_path / "one").mkdir()
    place, said = Placement(0, 0, 8, 8), []
    info = HeatmapInfo("s.svs", SLIDE, Mpp(0.5, 0.5), place, ("first", "gradient · none · layer2 · tumour"))
    writer = HeatmapWriter.create(tmp_path / "two.ome.zarr", Size(300, 200), info)
    writer.write_rows(0, cells)
    both, alone = writer.finish(), heatmap_of(tmp_path / "one", cells[1], place)
    np.testing.assert_array_equal(map_on_thumbnail(both, THUMBNAIL, 1), map_on_thumbnail(alone, THUMBNAIL))
    for channel, heatmap in ((1, both), (0, alone)):
        write_overview(
            tmp_path / f"{channel}.png", np.zeros((400, 600, 3), np.uint8), heatmap, channel=channel
        )
        said.append((tmp_path / f"{channel}.png").read_bytes())
    assert said[0] == said[1]


@pytest.mark.parametrize("said", [[], [0.5], [0.2, 0.9, 0.6], [0.51, 0.1, 0.1]])
def test_predictions_that_are_added_one_by_one_are_those_of_all(said):
    counted = Predictions.of("tumour", [])
    for probability in said:
        counted = counted.adding(probability)
    assert counted == Predictions.of("tumour", said)
