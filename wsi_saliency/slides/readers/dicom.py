"""Which DICOM files are parts of one slide: those of one series. The pixels of DICOM slides OpenSlide reads.

A DICOM file is a preamble of 128 bytes, ``DICM``, and elements in the order of their tags: group and number,
in most files two letters for the type of the value, its length, and the value (DICOM PS3.5, section 7). The
elements of group 2 come first, always in the same encoding, and name that of the others (PS3.10, section 7).
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

DICOM_SUFFIXES = frozenset({".dcm", ".dicom"})
HEAD = 2**18
"""Bytes from the beginning of a file among which the series is: what comes before it is a few kB."""

_FIRST = 132  # the first element's place
_META, _SYNTAX, _SERIES = 0x0002, (0x0002, 0x0010), (0x0020, 0x000E)
_MARKS, _ENDS = 0xFFFE, (0xE00D, 0xE0DD)  # what items of sequences begin and end with; they have no type
_UNDEFINED = 0xFFFFFFFF  # the length of what goes on to its end mark
_IMPLICIT = "1.2.840.10008.1.2"  # the encoding without types
_UNREAD = (
    "1.2.840.10008.1.2.2",
    "1.2.840.10008.1.2.1.99",
)  # big-endian and deflated, which no scanner writes
_LONG = frozenset(b"OBODOFOLOVOWSQSVUCUNURUTUV"[i : i + 2] for i in range(0, 26, 2))  # lengths of four bytes


class _Element(NamedTuple):
    """An element: where it is, its tag, and where its value is."""

    place: int
    tag: tuple[int, int]
    start: int
    length: int


def series_of(path: Path) -> str | None:
    """Return the SeriesInstanceUID of a DICOM file, None if it is not where it should be.

    The files of a folder that share it are levels, label and macro image of one slide.

    Raises
    ------
    OSError
        If the file cannot be read.
    """
    with path.open("rb") as file:
        return series_in(file.read(HEAD))


def series_in(data: bytes) -> str | None:
    """Return the SeriesInstanceUID from the first `HEAD` bytes of a DICOM file, None if it is not there."""
    try:
        return _series(data) if data[_FIRST - 4 : _FIRST] == b"DICM" else None
    except (struct.error, UnicodeDecodeError):  # the end of what has been read, or no DICOM behind its mark
        return None


def _series(data: bytes) -> str | None:
    syntax, others = "", _FIRST
    for element in _elements(data, _FIRST):
        if element.tag[0] != _META:
            others = element.place
            break
        if element.tag == _SYNTAX:
            syntax = _text(data, element)
    if syntax in _UNREAD:
        return None
    # Elements are in order: what is not found before its place is not there.
    later = (e for e in _elements(data, others, typed=syntax != _IMPLICIT) if e.tag >= _SERIES)
    found = next(later)
    return (_text(data, found) or None) if found.tag == _SERIES else None


def _elements(data: bytes, place: int, *, typed: bool = True) -> Iterator[_Element]:
    """Yield the elements from a place on, without those inside others."""
    depth = 0
    while True:
        element = _element(data, place, typed=typed)
        if depth == 0:
            yield element
        group, number = element.tag
        place = element.start
        if group == _MARKS and number in _ENDS:
            depth -= 1
        elif element.length == _UNDEFINED:
            depth += 1
        else:
            place += element.length


def _element(data: bytes, place: int, *, typed: bool) -> _Element:
    group, number = struct.unpack_from("<HH", data, place)
    if not typed or group == _MARKS:
        layout, start = "<4xI", place + 8
    elif data[place + 4 : place + 6] in _LONG:
        layout, start = "<8xI", place + 12
    else:
        layout, start = "<6xH", place + 8
    (length,) = struct.unpack_from(layout, data, place)
    return _Element(place, (group, number), start, length)


def _text(data: bytes, element: _Element) -> str:
    """Read a UID, which has 64 characters at most and is filled up to an even number."""
    return data[element.start : element.start + min(element.length, 64)].rstrip(b"\0 ").decode("ascii")
