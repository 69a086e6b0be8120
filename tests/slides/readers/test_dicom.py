from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import openslide
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tests.helpers.dicom import EXPLICIT, IMPLICIT, dicom, element, items, of_series, uid
from tests.helpers.paths import REAL_SLIDES
from wsi_saliency.slides.readers.dicom import series_of

if TYPE_CHECKING:
    from pathlib import Path

SERIES = (0x20, 0xE)
OURS = "1.2.3.4"


def sequence(typed: bool, undefined: bool, nested: int = 2) -> bytes:
    """A sequence of two items that hold a series of their own, which is not the file's, and sequences."""
    content = element(SERIES, "UI", uid("9.9.99"), typed)
    if nested:
        content += sequence(typed, undefined, nested - 1)
    return element((0x8, 0x1115), "SQ", items(content, content, undefined=undefined), typed, undefined)


def series(path: Path, content: bytes) -> str | None:
    path.write_bytes(content)
    return series_of(path)


@pytest.mark.parametrize("syntax", [EXPLICIT, IMPLICIT])
@pytest.mark.parametrize("undefined", [False, True])
def test_the_series_is_found_behind_sequences_with_series_of_others(
    tmp_path: Path, syntax: str, undefined: bool
) -> None:
    typed = syntax == EXPLICIT
    elements = [
        element((0x8, 0x5), "CS", b"ISO_IR 192", typed),
        sequence(typed, undefined),
        element((0x9, 0x10), "UT", b"x" * 70_000, typed),
        element((0x20, 0xD), "UI", uid("7.7"), typed),
        element(SERIES, "UI", uid(OURS), typed),
        element((0x40, 0x560), "SQ", b"", typed),
    ]
    assert series(tmp_path / "a.dcm", dicom(b"".join(elements), syntax)) == OURS


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"text",
        bytes(128) + b"DICM",
        dicom(b""),
        dicom(element((0x20, 0xD), "UI", uid("7.7"))),
        dicom(element((0x20, 0x10), "SH", b"none") + element((0x28, 0x10), "US", b"\1\0")),
        dicom(element(SERIES, "UI", b"")),
        dicom(element(SERIES, "UI", b"\xff\xff")),
        of_series(OURS, "1.2.840.10008.1.2.2"),
        of_series(OURS, "1.2.840.10008.1.2.1.99"),
        of_series(OURS)[:-14],
    ],
)
def test_what_has_no_series_has_none(tmp_path: Path, content: bytes) -> None:
    assert series(tmp_path / "a.dcm", content) is None


@given(st.binary(max_size=300))
@example(b"\xff" * 100)
def test_any_bytes_come_to_an_end(tmp_path_factory: pytest.TempPathFactory, noise: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "noise.dcm"
    found = series(path, dicom(noise))
    assert found is None or isinstance(found, str)


@pytest.mark.skipif(not (REAL_SLIDES / "jpeg.dicom").exists(), reason="no real slides")
def test_a_real_file_has_the_series_that_openslide_says(tmp_path: Path) -> None:
    path = shutil.copy(REAL_SLIDES / "jpeg.dicom", tmp_path / "a.dcm")
    with openslide.OpenSlide(path) as slide:
        assert series_of(path) == slide.properties["dicom.SeriesInstanceUID"]
