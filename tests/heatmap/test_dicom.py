from __future__ import annotations

import math
import os
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import highdicom
import numpy as np
import pydicom
import pytest

from tests.helpers import dicom as slides
from tests.helpers.results import MPP, PLACEMENT, SPECS, Planted
from wsi_saliency.errors import OutputError, SettingsError
from wsi_saliency.heatmap import dicom
from wsi_saliency.heatmap.dicom import check_installed, write_dicom
from wsi_saliency.settings import RunSettings

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from wsi_saliency.heatmap.result import Result

WANTED = Planted(settings=(("exports", ["dicom"]),))
H, W = 700, 1100  # 2 × 3 tiles, none of which the map fills to its edge
PATIENT = ("PatientID", "PatientName", "PatientBirthDate", "PatientSex", "AccessionNumber", "StudyDate")


def noise(channels: int = 1, h: int = H, w: int = W) -> np.ndarray:
    values = np.random.default_rng(h).standard_normal((channels, h, w)).astype(np.float32) * np.float32(1e-4)
    values[:, :3, :2] = 0, -0.0
    values[:, 5, :3] = np.float32(1e-42), np.finfo(np.float32).smallest_normal, -np.float32(1e-45)
    return values


def of_slide(folder: Path, first: Path, **facts: Any) -> Result:
    result = WANTED.write(folder, [noise()])
    result.record["slide"] |= {"format": "dicom", "path": str(first), **facts}
    return result


def written(result: Result) -> list[pydicom.Dataset]:
    made = write_dicom(result)
    assert made is not None
    return [pydicom.dcmread(result.folder / name) for name in made]


def test_a_slide_from_a_url_is_read_where_it_was_brought(tmp_path: Path) -> None:
    first = slides.write_slide(tmp_path / "s")
    result = replace(of_slide(tmp_path / "r", first, path="s3://bucket/s/1.dcm"), slide_file=first)
    (made,) = written(result)
    assert made.FrameOfReferenceUID == slides.FRAME


def frames_of(dataset: pydicom.Dataset) -> np.ndarray:
    """All frames, (n, rows, columns), from the bytes of the file."""
    stored = np.frombuffer(dataset.FloatPixelData, "<f4")
    return stored.reshape(int(dataset.NumberOfFrames), dataset.Rows, dataset.Columns)


def put_together(dataset: pydicom.Dataset) -> np.ndarray:
    """Lay each frame where it says that it lies; cells without one are NaN."""
    rows, columns = dataset.Rows, dataset.Columns
    down, across = (
        math.ceil(dataset[f"TotalPixelMatrix{side}"].value / size) * size
        for side, size in (("Rows", rows), ("Columns", columns))
    )
    whole = np.full((down, across), np.nan, np.float32)
    for frame, facts in zip(frames_of(dataset), dataset.PerFrameFunctionalGroupsSequence, strict=True):
        place = facts.PlanePositionSlideSequence[0]
        y, x = place.RowPositionInTotalImagePixelMatrix - 1, place.ColumnPositionInTotalImagePixelMatrix - 1
        assert np.isnan(whole[y : y + rows, x : x + columns]).all()
        whole[y : y + rows, x : x + columns] = frame
    assert not np.isnan(whole).any()
    return whole


def offsets(place: pydicom.Dataset) -> list[float]:
    return [float(place[f"{axis}OffsetInSlideCoordinateSystem"].value) for axis in "XYZ"]


def assert_placed(
    dataset: pydicom.Dataset,
    origin: Sequence[float],
    orientation: Sequence[float],
    mm: tuple[float, float],
    scale: int = 1,
) -> None:
    """The map and each frame lie where the middle of their first cell lies on the slide.

    ``mm`` are those of the slide's pixels, x and y.
    """
    fx, fy = PLACEMENT.fx * scale, PLACEMENT.fy * scale
    spacing = dataset.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].PixelSpacing
    assert list(map(float, spacing)) == pytest.approx([fy * mm[1], fx * mm[0]], rel=1e-6, abs=0)
    assert list(map(float, dataset.ImageOrientationSlide)) == list(orientation)
    places = [f.PlanePositionSlideSequence[0] for f in dataset.PerFrameFunctionalGroupsSequence]
    first = dataset.TotalPixelMatrixOriginSequence[0]
    assert offsets(places[0]) == offsets(first)
    for place in places:
        i = place.ColumnPositionInTotalImagePixelMatrix - 1
        j = place.RowPositionInTotalImagePixelMatrix - 1
        right = (PLACEMENT.x0 + (i + 0.5) * fx - 0.5) * mm[0]  # from the middle of the slide's first pixel
        below = (PLACEMENT.y0 + (j + 0.5) * fy - 0.5) * mm[1]
        expected = [
            origin[axis] + right * orientation[axis] + below * orientation[3 + axis] for axis in range(3)
        ]
        assert offsets(place) == pytest.approx(expected, rel=0, abs=1e-6)


# ------------------------------------------------------------------------------------------- the map


@pytest.mark.parametrize("shape", [(H, W), (512, 512), (1, 1), (3, 1030)])
def test_values_are_those_of_the_map_bit_by_bit(tmp_path: Path, shape: tuple[int, int]) -> None:
    values = np.resize(noise(), (1, *shape))
    (dataset,) = written(WANTED.write(tmp_path, [values]))
    assert (dataset.TotalPixelMatrixRows, dataset.TotalPixelMatrixColumns) == shape
    whole = put_together(dataset)
    h, w = shape
    assert np.array_equal(whole[:h, :w].view(np.uint32), values[0].view(np.uint32))
    assert not whole[h:].any()
    assert not whole[:, w:].any()


def test_cells_lie_on_the_slide(tmp_path: Path) -> None:
    (dataset,) = written(WANTED.write(tmp_path, [noise()]))
    assert_placed(dataset, (0, 0, 0), (0, 1, 0, 1, 0, 0), (MPP.x / 1000, MPP.y / 1000))


def test_another_reader_takes_it(tmp_path: Path) -> None:
    values = noise()
    result = WANTED.write(tmp_path, [values])
    written(result)
    read = highdicom.pm.ParametricMap.from_file(tmp_path / "saliency.dcm")
    cells = read.get_total_pixel_matrix(apply_real_world_transform=False, dtype=np.float32)
    assert np.array_equal(cells, values[0])
    real = highdicom.imread(tmp_path / "saliency.dcm").get_total_pixel_matrix(apply_real_world_transform=True)
    assert np.array_equal(real, values[0].astype(np.float64))
    (mapping,) = read.SharedFunctionalGroupsSequence[0].RealWorldValueMappingSequence
    window = result.maps[0].windows[0]
    assert mapping.DoubleFloatRealWorldValueFirstValueMapped == window.lowest == values.min()
    assert mapping.DoubleFloatRealWorldValueLastValueMapped == window.highest == values.max()
    shown = read.SharedFunctionalGroupsSequence[0].FrameVOILUTSequence[0]
    ends = [float(shown.WindowCenter) + side * float(shown.WindowWidth) / 2 for side in (-1, 1)]
    assert ends == pytest.approx([window.start, window.end], rel=1e-6)


def test_an_empty_map_is_written(tmp_path: Path) -> None:
    (dataset,) = written(WANTED.write(tmp_path, [np.zeros((1, 9, 7))]))
    assert not frames_of(dataset).any()


@pytest.mark.parametrize(("most", "level"), [(H * W, 0), (H * W - 1, 1), (H * W // 4, 1), (1, 2)])
def test_a_large_map_is_written_at_a_coarser_level(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most: int, level: int
) -> None:
    monkeypatch.setattr(dicom, "MOST_CELLS", most)
    result = WANTED.write(tmp_path, [noise()])
    made = write_dicom(result)
    assert made is not None
    assert made["saliency.dcm"]["level"] == level
    dataset = pydicom.dcmread(tmp_path / "saliency.dcm")
    h, w = math.ceil(H / 2**level), math.ceil(W / 2**level)
    assert (dataset.TotalPixelMatrixRows, dataset.TotalPixelMatrixColumns) == (h, w)
    expected = result.heatmap().read(level)[:h, :w]
    assert np.array_equal(put_together(dataset)[:h, :w], expected)
    assert_placed(dataset, (0, 0, 0), (0, 1, 0, 1, 0, 0), (MPP.x / 1000, MPP.y / 1000), 2**level)


def test_each_map_and_target_has_a_file(tmp_path: Path) -> None:
    planted = replace(WANTED, targets=("../a b", "tumour"), classes=("x", "../a b", "tumour"))
    maps = [noise(2, 40, 50), noise(2, 20, 25)]
    result = planted.write(tmp_path, maps)
    for target, index in zip(result.record["targets"], (2, 1), strict=True):
        target["index"] = index
    made = write_dicom(result)
    assert made is not None
    names = [f"saliency.{spec.name}.class{index}.dcm" for spec in SPECS for index in (2, 1)]
    assert list(made) == names
    assert {path.name for path in tmp_path.glob("*.dcm")} == set(names)
    datasets = [pydicom.dcmread(tmp_path / name) for name in names]
    for number, (dataset, (k, channel)) in enumerate(zip(datasets, np.ndindex(2, 2), strict=True), 1):
        facts, values = made[names[number - 1]], maps[k][channel]
        assert (facts["map"], facts["target"]) == (SPECS[k].name, result.targets[channel])
        assert (
            facts["sop_instance_uid"]
            == dataset.SOPInstanceUID
            == dataset.file_meta.MediaStorageSOPInstanceUID
        )
        assert np.array_equal(put_together(dataset)[: values.shape[0], : values.shape[1]], values)
        assert result.targets[channel] in dataset.ContentDescription
        assert dataset.InstanceNumber == number
    assert len({d.SOPInstanceUID for d in datasets}) == 4
    assert len({(d.SeriesInstanceUID, d.StudyInstanceUID, d.FrameOfReferenceUID) for d in datasets}) == 1


# ------------------------------------------------------------------------------------------- identity


def test_the_same_result_makes_the_same_file(tmp_path: Path) -> None:
    files = []
    for name in "ab":
        result = WANTED.write(tmp_path / name, [noise()])
        os.utime(tmp_path / name / "saliency.ome.tif", (1e9, 1e9))
        written(result)
        files.append((tmp_path / name / "saliency.dcm").read_bytes())
    assert files[0] == files[1]


def test_another_map_or_slide_has_other_names(tmp_path: Path) -> None:
    values = noise()
    (one,) = written(WANTED.write(tmp_path / "a", [values]))
    (value,) = written(WANTED.write(tmp_path / "b", [values * 2]))
    (slide,) = written(replace(WANTED, name="other.svs").write(tmp_path / "c", [values]))
    (moved,) = written(replace(WANTED, placement=replace(PLACEMENT, x0=1.0)).write(tmp_path / "d", [values]))
    assert len({d.SOPInstanceUID for d in (one, value, slide, moved)}) == 4
    for name in ("StudyInstanceUID", "FrameOfReferenceUID", "SeriesInstanceUID"):
        assert one[name].value == value[name].value == moved[name].value != slide[name].value
    assert all(len(d.SOPInstanceUID) <= 64 and d.SOPInstanceUID.is_valid for d in (one, value, slide))


def test_nothing_is_invented_where_the_slide_is_no_dicom(tmp_path: Path) -> None:
    (dataset,) = written(WANTED.write(tmp_path, [noise()]))
    assert all(name in dataset and not dataset[name].value for name in PATIENT)
    assert "SourceImageSequence" not in dataset
    assert "ReferencedSeriesSequence" not in dataset
    assert (
        dataset.ContainerIdentifier
        == dataset.SpecimenDescriptionSequence[0].SpecimenIdentifier
        == "slide.svs"
    )
    assert dataset.ContentQualification == "RESEARCH"


HOSTILE = [
    "böse 'slide'.svs",
    "a\\b\\c.svs",
    "\x1b[31m\nline\x00.svs",
    "\udcff\udcfe.svs",
    "   ",
    "\\",
    "x" * 63 + " y.svs",
    "病理" * 60 + ".svs",
    "=^~.svs",
    "\u202e.svs",
]


@pytest.mark.parametrize("name", HOSTILE)
def test_no_name_of_a_slide_or_a_class_spoils_the_file(tmp_path: Path, name: str) -> None:
    target = name.encode(errors="replace").decode()  # those of classes are text
    planted = replace(WANTED, name=name, targets=(target,), classes=(target,))
    (dataset,) = written(planted.write(tmp_path, [noise(1, 20, 30)]))
    for text in (dataset.ContainerIdentifier, dataset.ContentDescription):
        assert isinstance(text, str)
        assert 0 < len(text) <= 64
        assert text.isprintable() or "\u202e" in text
    highdicom.pm.ParametricMap.from_file(tmp_path / "saliency.dcm")


# -------------------------------------------------------------------------------------- DICOM slides


def test_a_map_of_a_dicom_slide_is_of_its_study_and_refers_to_its_levels(tmp_path: Path) -> None:
    first = slides.write_slide(tmp_path / "slide")
    slides.write_slide(tmp_path / "elsewhere", SeriesInstanceUID="1.2.9")
    (tmp_path / "elsewhere" / "3.dcm").rename(first.parent / "9.dcm")  # of another slide
    (dataset,) = written(of_slide(tmp_path / "out", first))
    assert (dataset.StudyInstanceUID, dataset.FrameOfReferenceUID) == (slides.STUDY, slides.FRAME)
    assert dataset.SeriesInstanceUID not in (slides.SERIES, "1.2.9")
    (series,) = dataset.ReferencedSeriesSequence
    assert series.SeriesInstanceUID == slides.SERIES
    finest_first = ["1.2.3.7.3", "1.2.3.7.2"]
    for references in (dataset.SourceImageSequence, series.ReferencedInstanceSequence):
        assert [r.ReferencedSOPInstanceUID for r in references] == finest_first
    assert (str(dataset.PatientName), dataset.PatientID, dataset.StudyDate) == (
        "Müller^Ä",
        "0815",
        "20200102",
    )
    assert dataset.ContainerIdentifier == "S-1"
    assert dataset.Manufacturer == "wsi-saliency"
    highdicom.pm.ParametricMap.from_file(tmp_path / "out" / "saliency.dcm")


def test_it_lies_in_the_coordinate_system_of_the_slide(tmp_path: Path) -> None:
    first = slides.write_slide(tmp_path / "slide")
    (dataset,) = written(of_slide(tmp_path / "out", first, mpp={"x": 9.0, "y": 9.0}))
    assert_placed(dataset, slides.ORIGIN, slides.ORIENTATION, (slides.SPACING[1], slides.SPACING[0]))


def test_a_slide_may_leave_out_where_it_lies(tmp_path: Path) -> None:
    first = slides.write_slide(
        tmp_path / "slide", TotalPixelMatrixOriginSequence=None, FrameOfReferenceUID=None, PatientID=None
    )
    (dataset,) = written(of_slide(tmp_path / "out", first))
    assert_placed(dataset, (0, 0, 0), slides.ORIENTATION, (slides.SPACING[1], slides.SPACING[0]))
    assert dataset.FrameOfReferenceUID.is_valid
    assert not dataset.PatientID


@pytest.mark.parametrize(("said", "expected"), [({}, ""), ({"Laterality": "L"}, "L")])
def test_without_a_specimen_the_side_of_the_body_is_named_if_only_as_unknown(
    tmp_path: Path, said: dict[str, str], expected: str
) -> None:
    """An element of type 2C, whose condition nobody can check of a slide that does not say what is on it."""
    (dataset,) = written(of_slide(tmp_path / "out", slides.write_slide(tmp_path / "slide", **said)))
    assert dataset.Laterality == expected


@pytest.mark.parametrize(
    "changes",
    [
        {"ImageOrientationSlide": None},
        {"SharedFunctionalGroupsSequence": None},
        {"ImageType": ["DERIVED"]},
        {"StudyInstanceUID": None},
        {"TotalPixelMatrixColumns": None},
    ],
)
def test_a_slide_that_does_not_say_enough_is_named(tmp_path: Path, changes: dict[str, Any]) -> None:
    result = of_slide(tmp_path / "out", slides.write_slide(tmp_path / "slide", **changes))
    with pytest.raises(OutputError) as refused:
        write_dicom(result)
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "out" / "saliency.dcm").exists()


@pytest.mark.parametrize("spacing", [(0.0, 0.00025), (0.0005, -1.0)])
def test_a_slide_without_an_extent_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spacing: tuple[float, float]
) -> None:
    monkeypatch.setattr(slides, "SPACING", spacing)
    with pytest.raises(OutputError, match="is no number that can be"):
        write_dicom(of_slide(tmp_path / "out", slides.write_slide(tmp_path / "slide")))


@pytest.mark.parametrize("content", [None, b"", b"text", bytes(128) + b"DICM" + b"\xff" * 50])
def test_a_dicom_slide_that_has_gone_is_named(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "slide.dcm"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(OutputError, match="--export dicom needs this DICOM slide") as refused:
        write_dicom(of_slide(tmp_path / "out", path))
    assert str(refused.value).startswith(f"{path}: ")
    assert "\n" not in str(refused.value)


# ------------------------------------------------------------------------------------- when it is made


@pytest.mark.parametrize("settings", [(("exports", []),), ()])
def test_nothing_is_written_unless_asked_for(tmp_path: Path, settings: tuple[tuple[str, Any], ...]) -> None:
    assert write_dicom(Planted(settings=settings).write(tmp_path, [noise(1, 9, 9)])) is None
    assert not list(tmp_path.glob("*.dcm"))


def test_what_is_missing_is_named_with_what_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    check_installed(RunSettings(exports=("dicom",)))
    monkeypatch.setattr(dicom, "find_spec", lambda name: None)
    check_installed(RunSettings())
    with pytest.raises(SettingsError) as refused:
        check_installed(RunSettings(exports=("dicom",)))
    assert str(refused.value) == (
        "--export dicom needs highdicom, which is not installed; install it with: "
        "pip install 'wsi-saliency[dicom]'"
    )
