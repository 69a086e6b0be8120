"""Maps as DICOM Parametric Maps (PS3.3, A.75): float32 values, tiled, in the slide's coordinate system.

A file holds one map of one target: the frames of a parametric map do not say in their index which channel
they are of, so readers could not put several channels together again. highdicom, which writes the files, is
imported when they are asked for.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import asdict, dataclass
from datetime import datetime
from importlib.metadata import version
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import numpy as np

from wsi_saliency.errors import OutputError, SettingsError
from wsi_saliency.files import writing
from wsi_saliency.geometry import Size
from wsi_saliency.heatmap.pyramid import TILE
from wsi_saliency.heatmap.result import MAP
from wsi_saliency.messages import one_line

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray
    from pydicom import Dataset

    from wsi_saliency.geometry import Placement
    from wsi_saliency.heatmap.dicom_slide import DicomSlide
    from wsi_saliency.heatmap.ome_zarr import Heatmap
    from wsi_saliency.heatmap.pyramid import Window
    from wsi_saliency.heatmap.result import MapRecord, Result
    from wsi_saliency.settings import RunSettings

DICOM = f"{MAP}*.dcm"
MOST_CELLS = 2**26
"""The finest level that is not larger is written: 256 MiB of values, of which about five copies are held."""

_PROGRAM = "wsi-saliency"


@dataclass(frozen=True)
class _Channel:
    """One map of one target, and the file that it goes to."""

    file: str
    number: int
    found: MapRecord
    target: str
    window: Window
    name: str
    level: int
    values: NDArray[np.float32]


def check_installed(settings: RunSettings) -> None:
    """Find out whether what the exports need is installed, before a slide is explained for them.

    Raises
    ------
    SettingsError
        If highdicom is missing.
    """
    if "dicom" in settings.exports and find_spec("highdicom") is None:
        raise SettingsError(
            "--export dicom needs highdicom, which is not installed; install it with: "
            "pip install 'wsi-saliency[dicom]'"
        )


def write_dicom(result: Result) -> dict[str, Any] | None:
    """Write a parametric map of each map and target, if the settings ask for DICOM.

    Returns
    -------
    By file name, which map, target and level it holds, and its SOP Instance UID; None if none was asked for.

    Raises
    ------
    OutputError
        If one cannot be written, or the DICOM slide that it is of is not there.
    """
    if "dicom" not in result.record["settings"].get("exports", ()):
        return None
    from wsi_saliency.heatmap.dicom_slide import slide_of

    slide, made = slide_of(result), {}
    for channel in _channels(result):
        dataset = _parametric_map(result, slide, channel)
        with writing(result.folder / channel.file):
            dataset.save_as(result.folder / channel.file, enforce_file_format=True)
        made[channel.file] = {
            "map": channel.found.spec.name,
            "target": channel.target,
            "level": channel.level,
            "sop_instance_uid": str(dataset.SOPInstanceUID),
        }
    return made


def file_name(result: Result, found: MapRecord, target: int) -> str:
    """Name the file of a map and the target of that index; what there is one of is not named.

    Names of classes are anybody's, so a target is named by its number among the classes.
    """
    of_map = [found.spec.name] if len(result.maps) > 1 else []
    of_target = [f"class{result.target_indices[target]}"] if len(result.targets) > 1 else []
    return ".".join([MAP, *of_map, *of_target, "dcm"])


def _channels(result: Result) -> Iterator[_Channel]:
    """Read the maps of all targets, one after the other."""
    number = 0
    for found in result.maps:
        heatmap = result.heatmap(found.spec)
        level = _level(heatmap)
        size = _cells(heatmap.size, level)
        for index, target in enumerate(result.targets):
            number += 1
            values = heatmap.read(level, slice(size.h), slice(size.w), channel=index)
            file, window = file_name(result, found, index), found.windows[index]
            yield _Channel(file, number, found, target, window, found.channels[index], level, values)


def _level(heatmap: Heatmap) -> int:
    """Return the finest level of at most `MOST_CELLS` cells, or the coarsest."""
    sizes = [_cells(heatmap.size, level) for level in range(len(heatmap.levels))]
    return next((k for k, size in enumerate(sizes) if size.w * size.h <= MOST_CELLS), len(sizes) - 1)


def _cells(size: Size, level: int) -> Size:
    """Cells of a level without padding; the last ones may reach over the edge of the finest level."""
    return Size(math.ceil(size.w / 2**level), math.ceil(size.h / 2**level))


def _parametric_map(result: Result, slide: DicomSlide, channel: _Channel) -> Any:
    """Make the dataset of a map.

    Raises
    ------
    OutputError
        If the slide's own DICOM attributes do not suit it.
    """
    from highdicom.pm import ParametricMap

    from wsi_saliency.heatmap.dicom_slide import UNUSABLE

    placement = channel.found.placement.at_level(channel.level)
    try:
        made = ParametricMap(
            source_images=[_grid(slide, placement, channel.values)],
            further_source_images=slide.instances[1:],
            pixel_array=channel.values,
            tile_pixel_array=True,
            tile_size=(TILE, TILE),
            dimension_organization_type="TILED_SPARSE",
            series_instance_uid=_series_uid(result, slide),
            series_number=1,
            sop_instance_uid=_instance_uid(slide, placement, channel),
            instance_number=channel.number,
            **_description(channel),
        )
    except UNUSABLE as error:
        raise OutputError(f"{channel.file}: cannot be made for this slide ({one_line(error)})") from error
    if not made.get("SpecimenDescriptionSequence"):  # which would say what part of the body it is of
        made.Laterality = slide.facts.get("Laterality", "")
    tiff = result.folder / result.files(channel.found.spec).ome_tiff
    _settle(made, datetime.fromtimestamp(tiff.stat().st_mtime), of_files=bool(slide.instances))
    return made


def _description(channel: _Channel) -> dict[str, Any]:
    """Say what made the map, what a value is (a plain number, as it is stored) and what is displayed."""
    from highdicom import VOILUTTransformation
    from highdicom.pm import RealWorldValueMapping
    from pydicom.sr.codedict import codes

    from wsi_saliency.heatmap.dicom_slide import long_string

    window, name = channel.window, long_string(channel.name)
    span, middle = (window.lowest, window.highest), (window.start + window.end) / 2
    # Values are small; the usual function would take them for steps of 1.
    shown = VOILUTTransformation(middle, window.end - window.start, voi_lut_function="LINEAR_EXACT")
    return {
        "manufacturer": _PROGRAM,
        "manufacturer_model_name": _PROGRAM,
        "software_versions": version(_PROGRAM),
        "device_serial_number": "none",
        "contains_recognizable_visual_features": False,
        "real_world_value_mappings": [RealWorldValueMapping("saliency", name, codes.UCUM.NoUnits, span)],
        "voi_lut_transformations": [shown],
        "content_label": "SALIENCY",
        "content_description": name,
        "series_description": "Saliency of a classifier",
        "specific_character_set": "ISO_IR 192",
    }


def _grid(slide: DicomSlide, placement: Placement, values: NDArray[np.float32]) -> Dataset:
    """Return the slide's facts with the map's cells for pixels, which the map then lies on as it is."""
    from highdicom import PixelMeasuresSequence
    from pydicom import Dataset
    from pydicom.valuerep import DS

    grid, origin, shared = Dataset(), Dataset(), Dataset()
    grid.update(slide.facts)
    place = slide.position(*placement.centre(0, 0))
    for axis, offset in zip("XYZ", place, strict=True):
        setattr(origin, f"{axis}OffsetInSlideCoordinateSystem", DS(offset, auto_format=True))
    across, down = slide.spacing
    measures = PixelMeasuresSequence((down * placement.fy, across * placement.fx), slice_thickness=None)
    shared.PixelMeasuresSequence = measures
    grid.TotalPixelMatrixOriginSequence, grid.SharedFunctionalGroupsSequence = [origin], [shared]
    grid.ImageOrientationSlide = [DS(cosine, auto_format=True) for cosine in slide.orientation]
    grid.TotalPixelMatrixRows, grid.TotalPixelMatrixColumns = values.shape
    grid.Rows = grid.Columns = TILE
    grid.NumberOfFrames = math.prod(-(-side // TILE) for side in values.shape)
    return grid


def _series_uid(result: Result, slide: DicomSlide) -> str:
    """Name the series that all maps of a result are in, those that are added included.

    It cannot be the slide's own: a series is of one modality and of one device.
    """
    from wsi_saliency.heatmap.dicom_slide import stable_uid

    weights, facts = result.record["model"].get("sha256"), slide.facts
    of = str(facts.StudyInstanceUID), str(facts.SeriesInstanceUID)
    return stable_uid("series", *of, weights, result.record.get("grid"))


def _instance_uid(slide: DicomSlide, placement: Placement, channel: _Channel) -> str:
    """Name a map: another map, another place or another value has another name."""
    from wsi_saliency.heatmap.dicom_slide import stable_uid

    facts, values = slide.facts, np.ascontiguousarray(channel.values)
    return stable_uid(
        *("map", str(facts.StudyInstanceUID), str(facts.SeriesInstanceUID), str(facts.FrameOfReferenceUID)),
        *(channel.found.spec.name, channel.name, channel.number, asdict(placement), asdict(channel.window)),
        *(slide.origin, slide.orientation, slide.spacing, values.shape, version(_PROGRAM)),
        hashlib.sha256(values.data).hexdigest(),
    )


def _settle(made: Any, written: datetime, *, of_files: bool) -> None:
    """Put what would be new each time, or refers to what is in no file, into its final form."""
    from wsi_saliency.heatmap.dicom_slide import stable_uid

    made.ContentDate = made.InstanceCreationDate = written.strftime("%Y%m%d")
    made.ContentTime = made.InstanceCreationTime = written.strftime("%H%M%S")
    library = made.ContributingEquipmentSequence[-1]
    library.ContributionDateTime = written.strftime("%Y%m%d%H%M%S")
    organization = stable_uid("dimensions", str(made.SOPInstanceUID))
    for item in (*made.DimensionOrganizationSequence, *made.DimensionIndexSequence):
        item.DimensionOrganizationUID = organization
    if not of_files:
        del made.SourceImageSequence, made.ReferencedSeriesSequence
