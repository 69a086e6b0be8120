from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

from tests.helpers.results import SPECS, Planted
from wsi_saliency.errors import OutputError
from wsi_saliency.geometry import Placement, Size
from wsi_saliency.heatmap import contact_sheet
from wsi_saliency.heatmap.contact_sheet import LONGEST, MOST, WIDTH, write_contact_sheet
from wsi_saliency.heatmap.overview import Predictions

if TYPE_CHECKING:
    from pathlib import Path

    from wsi_saliency.heatmap.result import Result

SLIDE, CELLS = Size(2400, 1600), (200, 300)
SAID = Predictions("tumour", 3, 1, 0.93)
NONE = Predictions("tumour", 3, 0, 0.4)
WHOLE = Placement(0, 0, 8, 8)


def result_of(folder: Path, *maps: np.ndarray, signed: bool = False) -> Result:
    how = Planted(size=SLIDE, placement=WHOLE, signed=signed)
    return how.write(folder / "result", [values[None].astype(np.float32) for values in maps])


def pixels_of(result: Result, said: Predictions = SAID, **how: object) -> np.ndarray:
    path = result.folder / "overview.png"
    maps = [(found, result.heatmap(found.spec)) for found in result.maps]
    thumbnail = np.full((400, 600, 3), 240, np.uint8)
    write_contact_sheet(path, thumbnail, maps, said, **how)  # type: ignore[arg-type]
    return np.asarray(Image.open(path).convert("RGB")).astype(int)


def panel_of(pixels: np.ndarray, number: int, panels: int = 3) -> np.ndarray:
    grid = contact_sheet._grid(SLIDE, panels, 1)
    x, y = grid.corner(number)
    top = y + contact_sheet._LINE + contact_sheet._NEAR
    return pixels[top : top + grid.panel.h, x : x + grid.panel.w]


def spot(cell_x: int, cell_y: int) -> np.ndarray:
    cells = np.full(CELLS, 1e-3)
    cells[cell_y - 20 : cell_y + 20, cell_x - 20 : cell_x + 20] = 1
    return cells


@pytest.mark.parametrize("signed", [True, False])
def test_each_map_is_in_its_panel_and_its_spot_at_its_place(tmp_path: Path, signed: bool) -> None:
    places = [(225, 125), (60, 40)]
    pixels = pixels_of(result_of(tmp_path, *(spot(*place) for place in places), signed=signed))
    for number, (cell_x, cell_y) in enumerate(places, 1):
        panel = panel_of(pixels, number)
        rows, columns = np.nonzero(np.ptp(panel, axis=2) > 60)
        assert (columns.mean() + 0.5) / panel.shape[1] == pytest.approx(cell_x / 300, abs=0.005)
        assert (rows.mean() + 0.5) / panel.shape[0] == pytest.approx(cell_y / 200, abs=0.005)
    assert (panel_of(pixels, 0) == 240).all()  # the slide, as it is


def test_colours_lie_below_each_panel_and_no_map_is_bright_by_percentiles_alone(tmp_path: Path) -> None:
    result = result_of(tmp_path, *np.random.default_rng(0).random((2, *CELLS)))
    bright, dark = pixels_of(result), pixels_of(result, NONE)
    assert np.ptp(panel_of(bright, 1), axis=2).mean() > 40
    assert np.ptp(dark, axis=2).max() < 12  # ink and frames
    told = pixels_of(result, NONE, value_range=(0.0, 1.0))
    assert np.ptp(panel_of(told, 1), axis=2).mean() > 40


def test_a_range_gives_equal_values_of_two_maps_equal_colours(tmp_path: Path) -> None:
    values = np.random.default_rng(0).random(CELLS)
    result = result_of(tmp_path, values, 50 * values)
    own = pixels_of(result)
    np.testing.assert_allclose(panel_of(own, 1), panel_of(own, 2), atol=2)
    same = pixels_of(result, value_range=(0.0, 1.0))
    assert np.abs(panel_of(same, 1) - panel_of(same, 2)).max() > 60


def test_what_maps_share_is_said_once(tmp_path: Path) -> None:
    maps = result_of(tmp_path, spot(50, 50), spot(60, 60)).maps
    labels = contact_sheet._Labels.of(maps)
    assert (labels.shared, labels.own) == ("centred-hook · deeplift", [[spec.layer] for spec in SPECS])


@pytest.mark.parametrize("panels", [2, 3, 9, MOST + 1])
@pytest.mark.parametrize("lines", [1, 3])
@pytest.mark.parametrize("size", [SLIDE, Size(4000, 90_000), Size(120_000, 5000), Size(1, 1)], ids=str)
def test_all_panels_fit_whatever_their_number_and_shape(size: Size, panels: int, lines: int) -> None:
    grid = contact_sheet._grid(size, panels, lines)
    assert grid.height(panels) <= LONGEST
    for number in range(panels):
        x, y = grid.corner(number)
        assert x + grid.cell_w <= WIDTH
        assert y + grid.cell_h <= grid.height(panels)
    assert grid.panel.w <= grid.cell_w
    scale = max(grid.panel.w / size.w, grid.panel.h / size.h)
    assert grid.panel.w == pytest.approx(size.w * scale, abs=1)
    assert grid.panel.h == pytest.approx(size.h * scale, abs=1)


def test_of_very_many_maps_the_first_are_shown(tmp_path: Path) -> None:
    result = result_of(tmp_path, spot(50, 50), spot(60, 60))
    maps = [(found, result.heatmap(found.spec)) for found in result.maps] * MOST
    path = tmp_path / "sheet.png"
    write_contact_sheet(path, np.full((40, 60, 3), 240, np.uint8), maps, SAID)
    with Image.open(path) as sheet:
        assert sheet.size == (WIDTH, contact_sheet._grid(SLIDE, MOST + 1, 1).height(MOST + 1))


def test_the_same_maps_give_the_same_file_and_a_missing_folder_is_one_line(tmp_path: Path) -> None:
    result = result_of(tmp_path, spot(50, 50), spot(60, 60))
    pixels_of(result)
    first = (result.folder / "overview.png").read_bytes()
    pixels_of(result)
    assert (result.folder / "overview.png").read_bytes() == first
    maps = [(found, result.heatmap(found.spec)) for found in result.maps]
    with pytest.raises(OutputError, match=r"overview\.png: cannot be written \(No such file"):
        write_contact_sheet(tmp_path / "no" / "overview.png", np.zeros((4, 6, 3), np.uint8), maps, SAID)
