"""DICOM files: bare ones, elements enough to tell a series; and slides, with all facts but pixels."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, VLWholeSlideMicroscopyImageStorage

if TYPE_CHECKING:
    from pathlib import Path

EXPLICIT, IMPLICIT = "1.2.840.10008.1.2.1", "1.2.840.10008.1.2"
UNDEFINED = 0xFFFFFFFF


def element(
    tag: tuple[int, int], kind: str, value: bytes, typed: bool = True, undefined: bool = False
) -> bytes:
    """Encode an element, little-endian; ``undefined`` leaves its length open and marks its end."""
    length = UNDEFINED if undefined else len(value)
    if not typed:
        head = struct.pack("<HHI", *tag, length)
    elif kind in ("SQ", "OB", "UT"):
        head = struct.pack("<HH2s2xI", *tag, kind.encode(), length)
    else:
        head = struct.pack("<HH2sH", *tag, kind.encode(), length)
    return head + value + (mark(0xE0DD) if undefined else b"")


def mark(number: int, length: int = 0) -> bytes:
    """Encode the begin (0xE000) or end of an item, or the end of a sequence."""
    return struct.pack("<HHI", 0xFFFE, number, length)


def items(*contents: bytes, undefined: bool) -> bytes:
    """Encode the items of a sequence."""
    if undefined:
        return b"".join(mark(0xE000, UNDEFINED) + content + mark(0xE00D) for content in contents)
    return b"".join(mark(0xE000, len(content)) + content for content in contents)


def uid(text: str) -> bytes:
    """Encode a UID, filled up to an even length."""
    return text.encode() + b"\0" * (len(text) % 2)


def dicom(elements: bytes, syntax: str = EXPLICIT) -> bytes:
    """Put a preamble and the elements of group 2 before others."""
    meta = element((2, 1), "OB", b"\0\1") + element((2, 0x10), "UI", uid(syntax))
    return bytes(128) + b"DICM" + element((2, 0), "UL", struct.pack("<I", len(meta))) + meta + elements


def of_series(series: str, syntax: str = EXPLICIT) -> bytes:
    """Make a file of a series."""
    return dicom(element((0x20, 0xE), "UI", uid(series), typed=syntax != IMPLICIT), syntax)


STUDY, SERIES, FRAME = "1.2.3.4", "1.2.3.5", "1.2.3.6"
ORIGIN, ORIENTATION, SPACING = (20.5, 40.25, 0.0), (0.0, -1.0, 0.0, -1.0, 0.0, 0.0), (0.0005, 0.00025)
"""Of the slide: mm, cosines, and mm from row to row and from column to column."""


def write_slide(folder: Path, **changes: object) -> Path:
    """Write the levels and the label of a slide of 1200 × 800 pixels; return the first file, the label.

    ``changes`` are other attributes of each file; None leaves one out.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for number, (kind, scale) in enumerate((("LABEL", 4), ("VOLUME", 2), ("VOLUME", 1)), 1):
        facts = _image(kind, scale, number)
        for name, value in changes.items():
            delattr(facts, name) if value is None else setattr(facts, name, value)
        facts.save_as(folder / f"{number}.dcm", enforce_file_format=True)
    return folder / "1.dcm"


def _image(kind: str, scale: int, number: int) -> Dataset:
    facts, origin, shared, measures = Dataset(), Dataset(), Dataset(), Dataset()
    facts.file_meta = FileMetaDataset()
    facts.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    facts.SpecificCharacterSet = "ISO_IR 100"  # not that of maps
    facts.ImageType = ["ORIGINAL", "PRIMARY", kind, "NONE"]
    facts.SOPClassUID, facts.SOPInstanceUID = VLWholeSlideMicroscopyImageStorage, f"1.2.3.7.{number}"
    facts.StudyInstanceUID, facts.SeriesInstanceUID, facts.FrameOfReferenceUID = STUDY, SERIES, FRAME
    facts.PatientName, facts.PatientID, facts.StudyDate, facts.Modality = "Müller^Ä", "0815", "20200102", "SM"
    facts.Manufacturer, facts.ContainerIdentifier, facts.Rows, facts.Columns = "Scanner", "S-1", 256, 256
    facts.LossyImageCompression, facts.NumberOfFrames = "00", 1
    facts.TotalPixelMatrixColumns, facts.TotalPixelMatrixRows = 1200 // scale, 800 // scale
    facts.ImageOrientationSlide = list(ORIENTATION)
    origin.XOffsetInSlideCoordinateSystem, origin.YOffsetInSlideCoordinateSystem = map(str, ORIGIN[:2])
    measures.PixelSpacing = [mm * scale for mm in SPACING]
    shared.PixelMeasuresSequence = [measures]
    facts.TotalPixelMatrixOriginSequence, facts.SharedFunctionalGroupsSequence = [origin], [shared]
    return facts
