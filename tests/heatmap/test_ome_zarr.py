from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree as ET

import numpy as np
import pytest
import yaozarrs
from hypothesis import given, settings
from hypothesis import strategies as st
from zarr.storage import LocalStore

from tests.helpers.heatmaps import INFO, VERSIONS, named, noise, written
from wsi_saliency.errors import OutputError
from wsi_saliency.geometry import Size
from wsi_saliency.heatmap.ome_xml import COLOURS
from wsi_saliency.heatmap.ome_zarr import Heatmap, HeatmapWriter
from wsi_saliency.heatmap.pyramid import TILE, Window
from wsi_saliency.heatmap.snapshot import DamagedSnapshotError, Snapshot, write_snapshot

if TYPE_CHECKING:
    from pathlib import Path

    from wsi_saliency.settings import OmeZarrVersion


def padded(cells: np.ndarray, heatmap: Heatmap) -> np.ndarray:
    size = heatmap.level_sizes[0]
    base = np.zeros((size.h, size.w), np.float32)
    base[: cells.shape[0], : cells.shape[1]] = cells
    return base


def metadata(heatmap: Heatmap) -> dict[str, Any]:
    """The OME metadata as it stands in the store's own files."""
    v3 = heatmap.path / "zarr.json"
    if v3.exists():
        ome: dict[str, Any] = json.loads(v3.read_text())["attributes"]["ome"]
        return ome
    v2: dict[str, Any] = json.loads((heatmap.path / ".zattrs").read_text())
    return v2


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("shape", [(5, 3), (1, 1), (513, 700), (1100, 37), (30, 2300)])
def test_every_level_is_the_block_mean_of_the_padded_base(
    tmp_path: Path, version: OmeZarrVersion, shape: tuple[int, int]
) -> None:
    cells = noise(*shape)
    heatmap = written(tmp_path / "s.ome.zarr", cells, version)
    base = padded(cells, heatmap)
    np.testing.assert_array_equal(heatmap.read(0).view(np.uint32), base.view(np.uint32))
    for level, size in enumerate(heatmap.level_sizes):
        side = 2**level
        blocks = base.astype(float).reshape(size.h, side, size.w, side).mean(axis=(1, 3))
        assert heatmap.read(level).dtype == np.float32
        np.testing.assert_allclose(heatmap.read(level), blocks, rtol=1e-5, atol=1e-11)


@settings(max_examples=20)
@given(st.data())
def test_how_rows_are_cut_does_not_matter_and_missing_rows_are_zero(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    h = data.draw(st.integers(1, 1300))
    cuts = sorted(data.draw(st.sets(st.integers(0, h), max_size=6)) | {0, h})
    kept = data.draw(st.lists(st.booleans(), min_size=len(cuts) - 1, max_size=len(cuts) - 1))
    cells = noise(h, 7)
    writer = HeatmapWriter.create(tmp_path_factory.mktemp("cut") / "s.ome.zarr", Size(7, h), INFO)
    for top, bottom, keep in zip(cuts, cuts[1:], kept, strict=False):
        if keep:
            writer.write_rows(top, cells[None, top:bottom])
        else:
            cells[top:bottom] = 0
    heatmap = writer.finish()
    np.testing.assert_array_equal(heatmap.read(0), padded(cells, heatmap))


@pytest.mark.parametrize("version", VERSIONS)
def test_chunks_are_written_once_never_read_and_left_out_when_empty(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: OmeZarrVersion
) -> None:
    cells = noise(1100, 1300)
    cells[:TILE, :TILE] = 0
    writer = HeatmapWriter.create(tmp_path / "s.ome.zarr", Size(1300, 1100), INFO, version)
    calls: dict[str, list[str]] = {"get": [], "set": []}
    for name, keys in calls.items():
        monkeypatch.setattr(LocalStore, name, _recording(getattr(LocalStore, name), keys))
    for cell_y in range(0, 1100, 64):
        writer.write_rows(cell_y, cells[None, cell_y : cell_y + 64])
    writer.finish()
    is_chunk = lambda key: key.split("/")[-1].isdigit()  # noqa: E731
    stored = [key for key in calls["set"] if is_chunk(key)]
    assert not [key for key in calls["get"] if is_chunk(key)]
    assert len(stored) == len(set(stored)) == (9 - 1) + 4 + 1
    assert {key.replace("/c/", "/") for key in stored if key.startswith("0/")} == {
        f"0/0/{y}/{x}" for y in range(3) for x in range(3) if (y, x) != (0, 0)
    }


def _recording(original: Any, keys: list[str]) -> Any:
    async def call(self: LocalStore, key: str, *args: Any, **kwargs: Any) -> Any:
        keys.append(key)
        return await original(self, key, *args, **kwargs)

    return call


@pytest.mark.parametrize("version", VERSIONS)
def test_the_store_is_valid_ome_zarr(tmp_path: Path, version: OmeZarrVersion) -> None:
    heatmap = written(tmp_path / "s.ome.zarr", noise(600, 70), version)
    yaozarrs.validate_zarr_store(str(heatmap.path))
    ome = metadata(heatmap)
    assert [axis["name"] for axis in ome["multiscales"][0]["axes"]] == ["c", "y", "x"]
    assert {ome.get("version"), ome["multiscales"][0].get("version")} == {version, None}


def test_version_0_4_is_stored_as_qupath_reads_it(tmp_path: Path) -> None:
    heatmap = written(tmp_path / "s.ome.zarr", noise(600, 70))
    array = json.loads((heatmap.path / "0" / ".zarray").read_text())
    assert array["compressor"]["id"] == "blosc"
    assert array["dimension_separator"] == "/"
    assert array["chunks"] == [1, TILE, TILE]
    assert array["dtype"] == "<f4"
    assert array["fill_value"] == 0.0
    assert (heatmap.path / "OME" / ".zgroup").exists()


@pytest.mark.parametrize("version", VERSIONS)
def test_transforms_put_every_cell_where_the_placement_says(tmp_path: Path, version: OmeZarrVersion) -> None:
    heatmap = written(tmp_path / "s.ome.zarr", noise(5, 1500), version)
    mpp, datasets = INFO.slide_mpp, metadata(heatmap)["multiscales"][0]["datasets"]
    assert len(datasets) == len(heatmap.levels) == 3
    for level, dataset in enumerate(datasets):
        scale, translation = (
            next(iter(t.values())) for t in map(_without_type, dataset["coordinateTransformations"])
        )
        for cell_x, cell_y in ((0, 0), (3, 1), (370, 0)):
            x, y = INFO.placement.at_level(level).centre(cell_x, cell_y)
            assert cell_x * scale[2] + translation[2] == pytest.approx(mpp.x * (x - 0.5), rel=1e-12)
            assert cell_y * scale[1] + translation[1] == pytest.approx(mpp.y * (y - 0.5), rel=1e-12)
        assert (scale[0], translation[0]) == (1, 0)


def _without_type(transform: dict[str, Any]) -> dict[str, list[float]]:
    return {key: value for key, value in transform.items() if key != "type"}


@pytest.mark.parametrize("version", VERSIONS)
def test_an_opened_heatmap_knows_what_was_written(tmp_path: Path, version: OmeZarrVersion) -> None:
    finished = written(tmp_path / "s.ome.zarr", noise(30, 21), version)
    heatmap = Heatmap.open(finished.path)
    assert heatmap.info == INFO
    assert heatmap.size == Size(21, 30)
    assert heatmap.level_sizes == [Size(22, 30), Size(11, 15)]
    assert heatmap.windows == finished.windows
    np.testing.assert_array_equal(heatmap.read(0, slice(3, 9), slice(2, 5)), heatmap.read(0)[3:9, 2:5])


def test_the_window_comes_from_the_computed_cells(tmp_path: Path) -> None:
    cells = np.zeros((40, 200), np.float32)
    cells[3, :101] = np.arange(-20, 81)
    cells[3, 20] = 7  # in place of 0, which would not count
    heatmap = written(tmp_path / "s.ome.zarr", cells)
    window = metadata(heatmap)["omero"]["channels"][0]["window"]
    assert window == {"min": -20.0, "max": 80.0, "start": -19.0, "end": 79.0}
    assert metadata(heatmap)["omero"]["channels"][0]["label"] == INFO.channels[0]


def test_a_large_maps_window_comes_from_a_bounded_sample(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wsi_saliency.heatmap.pyramid.STATISTICS_CELLS", 2000)
    cells = noise(600, 500)
    writer = HeatmapWriter.create(tmp_path / "s.ome.zarr", Size(500, 600), INFO)
    for cell_y in range(0, 600, 7):
        writer.write_rows(cell_y, cells[None, cell_y : cell_y + 7])
    expected = np.percentile(cells[::13, ::13], (1, 99))
    (window,) = writer.finish().windows
    np.testing.assert_allclose((window.start, window.end), expected, rtol=1e-6)


def test_a_map_of_zeros_is_complete_and_holds_no_chunks(tmp_path: Path) -> None:
    heatmap = HeatmapWriter.create(tmp_path / "s.ome.zarr", Size(600, 600), INFO).finish()
    assert not heatmap.read(0).any()
    assert [(window.start, window.end) for window in heatmap.windows] == [(0.0, 1.0)]
    assert not [path for path in heatmap.path.rglob("*") if path.name.isdigit() and path.is_file()]


@pytest.mark.parametrize("version", VERSIONS)
def test_the_cell_size_stands_in_the_stores_ome_xml(tmp_path: Path, version: OmeZarrVersion) -> None:
    heatmap = written(tmp_path / "s.ome.zarr", noise(30, 21), version)
    pixels = ET.parse(heatmap.path / "OME" / "METADATA.ome.xml").find(".//{*}Pixels")
    assert pixels is not None
    assert float(pixels.attrib["PhysicalSizeX"]) == INFO.slide_mpp.x * INFO.placement.fx
    assert float(pixels.attrib["PhysicalSizeY"]) == INFO.slide_mpp.y * INFO.placement.fy
    assert (pixels.attrib["SizeX"], pixels.attrib["SizeY"]) == ("22", "30")


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_value_that_is_not_finite_stops_with_its_row(tmp_path: Path, bad: float) -> None:
    cells = noise(30, 21)
    cells[17, 4] = bad
    writer = HeatmapWriter.create(tmp_path / "s.ome.zarr", Size(21, 30), INFO)
    writer.write_rows(0, cells[None, :10])
    with pytest.raises(OutputError, match=r"s\.ome\.zarr: row 17 of the map .* --precision fp32"):
        writer.write_rows(10, cells[None, 10:])


@pytest.mark.parametrize(
    ("cell_y", "shape"),
    [(9, (1, 2, 21)), (29, (1, 2, 21)), (10, (1, 2, 20)), (-1, (1, 1, 21)), (10, (2, 2, 21))],
)
def test_rows_that_do_not_fit_are_refused(tmp_path: Path, cell_y: int, shape: tuple[int, ...]) -> None:
    writer = HeatmapWriter.create(tmp_path / "s.ome.zarr", Size(21, 30), INFO)
    writer.write_rows(0, noise(10, 21)[None])
    with pytest.raises(ValueError, match="do not fit 1 channels of 21 × 30"):
        writer.write_rows(cell_y, np.zeros(shape, np.float32))


def test_an_existing_store_is_not_touched(tmp_path: Path) -> None:
    heatmap = written(tmp_path / "s.ome.zarr", noise(5, 3))
    with pytest.raises(OutputError, match=r"s\.ome\.zarr: exists already"):
        HeatmapWriter.create(heatmap.path, Size(3, 5), INFO)
    assert Heatmap.open(heatmap.path).info == INFO


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    path = tmp_path / "file" / "s.ome.zarr"
    with pytest.raises(OutputError, match=r"s\.ome\.zarr: cannot be written \(.+\); choose") as caught:
        HeatmapWriter.create(path, Size(3, 5), INFO)
    assert "\n" not in str(caught.value)


def test_a_write_that_fails_half_way_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def full(*args: object, **kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    writer = HeatmapWriter.create(tmp_path / "s.ome.zarr", Size(21, 1030), INFO)
    monkeypatch.setattr(LocalStore, "set", full)
    message = r"s\.ome\.zarr: cannot be written \(No space left on device\)"
    with pytest.raises(OutputError, match=message):
        writer.write_rows(0, noise(600, 21)[None])


@pytest.mark.parametrize("version", VERSIONS)
def test_an_unfinished_or_foreign_store_is_not_opened(tmp_path: Path, version: OmeZarrVersion) -> None:
    unfinished = tmp_path / "s.ome.zarr"
    HeatmapWriter.create(unfinished, Size(3, 5), INFO, version).write_rows(0, noise(5, 3)[None])
    (tmp_path / "empty").mkdir()
    for path in (unfinished, tmp_path / "empty", tmp_path / "missing"):
        with pytest.raises(OutputError, match="holds no finished heatmap"):
            Heatmap.open(path)


# ----------------------------------------------------------------------------------------- channels


def unlike(h: int, w: int, channels: int = 3) -> np.ndarray:
    """Channels (C, h, w) of different ranges."""
    return np.stack([noise(h, w, seed) * np.float32(10**seed) for seed in range(channels)])


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("shape", [(5, 3), (1100, 37), (30, 1300)])
def test_each_channel_is_stored_as_a_map_of_its_own(
    tmp_path: Path, version: OmeZarrVersion, shape: tuple[int, int]
) -> None:
    cells = unlike(*shape)
    together = written(tmp_path / "s.ome.zarr", cells, version)
    yaozarrs.validate_zarr_store(str(together.path))
    assert together.info == named(3)
    for channel, of_channel in enumerate(cells):
        alone = written(tmp_path / f"{channel}.ome.zarr", of_channel, version)
        assert together.windows[channel] == alone.windows[0]
        assert together.level_sizes == alone.level_sizes
        for level in range(len(alone.levels)):
            assert together.levels[level].shape[0] == 3
            np.testing.assert_array_equal(together.read(level, channel=channel), alone.read(level))
        part = slice(1, 4), slice(0, 2)
        np.testing.assert_array_equal(together.read(0, *part, channel=channel), alone.read(0, *part))


@pytest.mark.parametrize("version", VERSIONS)
def test_each_channel_has_its_window_name_and_colour(tmp_path: Path, version: OmeZarrVersion) -> None:
    heatmap = written(tmp_path / "s.ome.zarr", unlike(30, 21, channels=9), version)
    channels = metadata(heatmap)["omero"]["channels"]
    assert [channel["label"] for channel in channels] == list(named(9).channels)
    assert [channel["color"] for channel in channels] == [*COLOURS, COLOURS[0]]
    assert len({*COLOURS}) == len(COLOURS) == 8
    assert [channel["active"] for channel in channels] == [True] + 8 * [False]
    windows = [
        Window(*(channel["window"][k] for k in ("min", "max", "start", "end"))) for channel in channels
    ]
    assert tuple(windows) == heatmap.windows
    ends = [window.end for window in windows]
    assert ends == sorted(ends)
    assert len({*ends}) == 9


def test_what_viewers_shall_display_holds_for_all_channels(tmp_path: Path) -> None:
    writer = HeatmapWriter.create(tmp_path / "s.ome.zarr", Size(21, 30), named(2), shown=(-1.0, 2.0))
    writer.write_rows(0, unlike(30, 21, 2))
    assert [(window.start, window.end) for window in writer.finish().windows] == [(-1.0, 2.0)] * 2


def test_a_value_that_is_not_finite_in_any_channel_stops_with_its_row(tmp_path: Path) -> None:
    cells = unlike(30, 21)
    cells[2, 17, 4] = np.nan
    writer = HeatmapWriter.create(tmp_path / "s.ome.zarr", Size(21, 30), named(3))
    with pytest.raises(OutputError, match="row 17 of the map"):
        writer.write_rows(0, cells)


# -------------------------------------------------------------------------------------------- going on


def _files(folder: Path) -> dict[Path, bytes]:
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@settings(max_examples=12)
@given(st.data())
@pytest.mark.parametrize("version", VERSIONS)
def test_a_reopened_store_becomes_that_of_one_that_was_not_interrupted(
    tmp_path_factory: pytest.TempPathFactory, version: OmeZarrVersion, data: st.DataObject
) -> None:
    """To the byte. After the state is taken, more rows are written, or even all, before the end comes."""
    h, w = data.draw(st.sampled_from([(1, 1), (600, 5), (1100, 37), (2100, 3), (512, 4)]))
    cells = noise(2 * h, w).reshape(2, h, w)
    cells[:, h // 3 : h // 2] = 0
    rows, work = data.draw(st.integers(1, 700)), tmp_path_factory.mktemp("again")
    whole = written(work / "whole" / "s.ome.zarr", cells, version, rows)
    path, info, size = work / "s.ome.zarr", named(2), Size(w, h)
    writer = HeatmapWriter.create(path, size, info, version)
    tops = range(0, h, rows)
    stop, further = sorted(data.draw(st.lists(st.integers(0, len(tops)), min_size=2, max_size=2)))
    for cell_y in tops[:stop]:
        writer.write_rows(cell_y, cells[:, cell_y : cell_y + rows])
    write_snapshot(work / "saved", {}, writer.state())
    for cell_y in tops[stop:further]:
        writer.write_rows(cell_y, cells[:, cell_y : cell_y + rows])
    if data.draw(st.booleans()):
        writer.finish()
    again = HeatmapWriter.reopen(path, size, info, version, None, Snapshot.read(work / "saved"))
    for cell_y in tops[stop:]:
        again.write_rows(cell_y, cells[:, cell_y : cell_y + rows])
    assert again.finish().windows == whole.windows
    assert _files(path) == _files(whole.path)


@pytest.mark.parametrize(
    "change",
    [
        {"next_y": np.array(601)},
        {"next_y": np.array(100)},
        {"0/range": np.array([-np.inf, 0])},
        {"0/sample": np.full(9, np.nan, np.float32)},
        {"0/sample": np.zeros(600 * 5 + 1, np.float32)},
        {"band/1": np.zeros((1, 3, 2), np.float32)},
    ],
    ids=str,
)
def test_a_state_of_another_store_is_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    path = tmp_path / "s.ome.zarr"
    writer = HeatmapWriter.create(path, Size(5, 600), INFO)
    writer.write_rows(0, noise(520, 5)[None])
    state = writer.state()
    write_snapshot(tmp_path / "saved", {}, state)
    HeatmapWriter.reopen(path, Size(5, 600), INFO, "0.4", None, Snapshot.read(tmp_path / "saved"))
    write_snapshot(tmp_path / "saved", {}, state | change)
    with pytest.raises(DamagedSnapshotError):
        HeatmapWriter.reopen(path, Size(5, 600), INFO, "0.4", None, Snapshot.read(tmp_path / "saved"))


@pytest.mark.parametrize("harm", ["missing", "no json", "other size", "other version"])
def test_a_store_that_is_another_one_is_not_reopened(tmp_path: Path, harm: str) -> None:
    path, version = tmp_path / "s.ome.zarr", VERSIONS[harm == "other version"]
    writer = HeatmapWriter.create(path, Size(5, 600 + (harm == "other size") * 400), INFO)
    writer.write_rows(0, noise(520, 5)[None])
    write_snapshot(tmp_path / "saved", {}, writer.state())
    if harm == "missing":
        path.rename(tmp_path / "elsewhere")
    if harm == "no json":
        (path / "0" / ".zarray").write_text("no json")
    with pytest.raises(DamagedSnapshotError):
        HeatmapWriter.reopen(path, Size(5, 600), INFO, version, None, Snapshot.read(tmp_path / "saved"))
