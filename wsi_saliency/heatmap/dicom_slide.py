"""Where a slide lies in DICOM: its coordinate system, its study, and the instances that hold it.

All of it comes from the slide's own files where it is a DICOM slide. Any other slide gets a coordinate
system and identifiers of its own, always the same for the same slide. It needs pydicom, and is imported when
maps are asked for.
"""

from __future__ import annotations

import json
import struct
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import NAMESPACE_URL, uuid5

import numpy as np
from pydicom import Dataset, dcmread
from pydicom.errors import BytesLengthException, InvalidDicomError
from pydicom.uid import UID, VLWholeSlideMicroscopyImageStorage

from wsi_saliency.errors import OutputError
from wsi_saliency.messages import one_line, storable
from wsi_saliency.slides.readers.dicom import DICOM_SUFFIXES, series_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from numpy.typing import NDArray

    from wsi_saliency.heatmap.result import Result

ORIENTATION = (0.0, 1.0, 0.0, 1.0, 0.0, 0.0)
"""Directions of rows and of columns, where no file says it: seen from above, where z of slides points."""

_EMPTY = (
    *("PatientID", "PatientName", "PatientBirthDate", "PatientSex", "AccessionNumber", "StudyID"),
    *("StudyDate", "StudyTime", "ReferringPhysicianName", "PositionReferenceIndicator"),
)
"""What each instance has, be it empty; nothing is put in that the slide does not say."""


UNUSABLE = (
    *(OSError, InvalidDicomError, BytesLengthException, EOFError, struct.error, NotImplementedError),
    *(ArithmeticError, AttributeError, LookupError, TypeError, ValueError),
)
"""What comes of files that are not there, are damaged, or leave out what is needed."""


@dataclass(frozen=True)
class DicomSlide:
    """A slide as DICOM sees it.

    Parameters
    ----------
    facts
        Attributes of the patient, the study and the specimen, and the UIDs of study and frame of reference.
    origin
        Middle of the first level-0 pixel, (x, y, z) in mm of the slide's coordinate system.
    orientation
        Directions of rows and of columns: six cosines.
    spacing
        mm per level-0 pixel, (x, y).
    instances
        The files' facts, those of the finest level first; none where the slide is no DICOM.
    """

    facts: Dataset
    origin: tuple[float, float, float]
    orientation: tuple[float, ...]
    spacing: tuple[float, float]
    instances: tuple[Dataset, ...] = ()

    def position(self, x: float, y: float) -> tuple[float, ...]:
        """Return where a point of the slide lies, in mm; x and y are level-0 pixels, corners are whole."""
        along = np.reshape(self.orientation, (2, 3))
        steps = np.multiply(self.spacing, (x - 0.5, y - 0.5))
        found: NDArray[np.float64] = np.add(self.origin, steps @ along)
        return tuple(map(float, found))


def slide_of(result: Result) -> DicomSlide:
    """Find where the slide of a result lies.

    Raises
    ------
    OutputError
        If the slide is a DICOM slide whose files have gone, or do not say which study they are of.
    """
    slide = result.record["slide"]
    if slide.get("format") != "dicom":
        return _without_files(slide)
    path = result.slide_file or Path(slide["path"])
    try:
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore"
            )  # what is amiss, and does not matter here, OpenSlide has read over
            return _of_files(_instances(path))
    except UNUSABLE as error:
        raise OutputError(
            f"{path}: --export dicom needs this DICOM slide, to refer to it, and cannot take from it what "
            f"it needs ({one_line(error)}); put it back, or leave the option out"
        ) from error


def stable_uid(*facts: object) -> UID:
    """Return a UID made of facts: the same for the same ones, on every machine (DICOM PS3.5, B.2)."""
    return UID(f"2.25.{uuid5(NAMESPACE_URL, json.dumps(['wsi-saliency', *facts])).int}")


def long_string(text: str) -> str:
    """Return text as DICOM's long strings can hold it: without backslashes, 64 characters at most."""
    return storable(text).replace("\\", "_").strip()[:64].rstrip()


def _without_files(slide: Mapping[str, Any]) -> DicomSlide:
    """Place a slide that is no DICOM: the middle of its first pixel is the origin."""
    known = [storable(slide["name"]), slide["bytes"], slide["size"], slide["mpp"]]
    name = long_string(slide["name"]) or "slide"
    specimen = Dataset()
    specimen.SpecimenIdentifier, specimen.SpecimenUID = name, stable_uid("specimen", *known)
    specimen.IssuerOfTheSpecimenIdentifierSequence = specimen.SpecimenPreparationSequence = []
    facts = _completed(Dataset())
    facts.SOPClassUID = VLWholeSlideMicroscopyImageStorage
    facts.StudyInstanceUID = stable_uid("study", *known)
    facts.FrameOfReferenceUID = stable_uid("frame of reference", *known)
    # Whoever makes a map out of these facts needs an instance that it is of; it stands in no file.
    facts.SeriesInstanceUID = facts.SOPInstanceUID = stable_uid("slide", *known)
    facts.ContainerIdentifier, facts.SpecimenDescriptionSequence = name, [specimen]
    facts.IssuerOfTheContainerIdentifierSequence = facts.ContainerTypeCodeSequence = []
    spacing = slide["mpp"]["x"] / 1000, slide["mpp"]["y"] / 1000
    return DicomSlide(facts, (0.0, 0.0, 0.0), ORIENTATION, spacing)


def _of_files(instances: tuple[Dataset, ...]) -> DicomSlide:
    """Take all that is known of a DICOM slide from its finest level."""
    finest = instances[0]
    facts = _completed(Dataset())
    facts.update({e.tag: e for e in finest if e.tag.group not in (0x5200, 0x7FE0) and not e.tag.is_private})
    measures = finest.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
    down, across = map(float, measures.PixelSpacing)
    places = finest.get("TotalPixelMatrixOriginSequence") or [Dataset()]
    origin = tuple(float(places[0].get(f"{axis}OffsetInSlideCoordinateSystem") or 0) for axis in "XYZ")
    if "FrameOfReferenceUID" not in facts:
        facts.FrameOfReferenceUID = stable_uid("frame of reference", str(finest.SeriesInstanceUID))
    x, y, z = origin
    orientation = tuple(map(float, finest.ImageOrientationSlide))
    if not (np.isfinite([*origin, *orientation, across, down]).all() and across > 0 and down > 0):
        raise ValueError("spacing, position or orientation is no number that can be")
    return DicomSlide(facts, (x, y, z), orientation, (across, down), instances)


def _completed(facts: Dataset) -> Dataset:
    for name in _EMPTY:
        setattr(facts, name, None)
    return facts


def _instances(path: Path) -> tuple[Dataset, ...]:
    """Read the facts of all levels of a DICOM slide, the finest first, from any of its files."""
    levels = [found for found in _series(path) if "VOLUME" in found.get("ImageType", ())]
    levels.sort(key=lambda found: (-int(found.TotalPixelMatrixColumns), str(found.SOPInstanceUID)))
    if not levels:
        raise KeyError("no level of it is there")
    return tuple(levels)


def _series(path: Path) -> Iterator[Dataset]:
    series = series_of(path)
    files = (file for file in sorted(path.parent.iterdir()) if file.suffix.lower() in DICOM_SUFFIXES)
    for file in sorted({path, *files}) if series else [path]:
        if file == path or (file.is_file() and series_of(file) == series):
            yield dcmread(file, stop_before_pixels=True)
