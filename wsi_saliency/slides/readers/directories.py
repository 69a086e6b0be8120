"""The directories of a TIFF, followed once before a library does: it might never come back.

A TIFF is a chain of directories, each with entries that say how large their values are and where they lie.
Nothing in the format keeps the chain from turning back on itself, or a value from being as large as the
memory; libraries follow it all the same.
"""

from __future__ import annotations

import os
import struct
from typing import TYPE_CHECKING, BinaryIO, NamedTuple

import numpy as np

from wsi_saliency.errors import SlideError

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

MAX_DIRECTORIES = 10_000
"""Most pictures in one file. Slides have below 20; a focus series has a few hundred."""

MAX_VALUES = 64 * 2**20
"""Most bytes of all entries and their values; 12 bytes a tile are enough for 500 000 × 500 000 pixels."""

_ENTRY = 200  # bytes of an entry in memory, about
_SUBIFDS, _NDPI = 330, 65420
_SIZES = np.zeros(2**16)
_SIZES[1:19] = [1, 1, 2, 4, 8, 1, 1, 2, 4, 8, 4, 8, 4, 0, 0, 8, 8, 8]  # bytes of a value, by its type
_POINTERS = {4: "I", 13: "I", 16: "Q", 17: "q", 18: "Q"}


class _Layout(NamedTuple):
    """How numbers stand in a classic or a big TIFF."""

    order: str
    number: str
    pointer: str
    first: int

    @property
    def entry(self) -> np.dtype[np.void]:
        short, wide = f"{self.order}u2", f"{self.order}u{struct.calcsize(self.pointer)}"
        return np.dtype([("tag", short), ("type", short), ("count", wide), ("value", wide)])


_LAYOUTS = {
    b"II*\0": _Layout("<", "<H", "<I", 4),
    b"MM\0*": _Layout(">", ">H", ">I", 4),
    b"II+\0": _Layout("<", "<Q", "<Q", 8),
    b"MM\0+": _Layout(">", ">Q", ">Q", 8),
}


def is_tiff(path: Path) -> bool:
    """Whether a file starts as a classic or big TIFF does."""
    with path.open("rb") as file:
        return file.read(4) in _LAYOUTS


def check_directories(path: Path) -> None:
    """Follow a TIFF's directories, and refuse a file in which a library would get lost.

    Raises
    ------
    SlideError
        If the directories form a loop, lie outside the file, or are or hold more than any slide's; with
        nothing but the reason.
    """
    with path.open("rb") as file:
        layout = _LAYOUTS[file.read(4)]
        size = os.fstat(file.fileno()).st_size
        _Walk(file, layout, size).follow(_first(file, layout, size))


class _Walk:
    """A walk over the directories, with what it has met so far."""

    def __init__(self, file: BinaryIO, layout: _Layout, size: int) -> None:
        self._file, self._layout, self._size = file, layout, size
        self._seen: set[int] = set()
        self._values = 0.0

    def follow(self, offset: int) -> None:
        """Visit a chain of directories and all that hang on it."""
        below: list[int] = []
        while True:
            if offset in self._seen:
                raise SlideError("its directories form a loop; the file is damaged, or made to do harm")
            subifds, offset = self._visit(offset)
            below += subifds
            if not offset:
                break
        while below:
            offset = below.pop()
            # A library takes a SubIFD from its parent's list, and does not follow it any further.
            if offset and offset not in self._seen:
                below += self._visit(offset)[0]

    def _visit(self, offset: int) -> tuple[list[int], int]:
        """Check one directory; return those below it and the next one, 0 if there is none."""
        if len(self._seen) == MAX_DIRECTORIES:
            raise SlideError(f"more than {MAX_DIRECTORIES} pictures in one file, which no slide has")
        if not 8 <= offset < self._size:
            raise SlideError(
                f"it is cut off or damaged: directory {len(self._seen)} should stand at byte {offset} "
                f"of {self._size}; copy the file again"
            )
        self._seen.add(offset)
        entries, following = _directory(self._file, self._layout, offset, self._size)
        self._values += _bytes_of_values(entries, self._size)
        if self._values > MAX_VALUES:
            raise SlideError("its directories describe far more than a slide has; the file is damaged")
        return _subifds(self._file, self._layout, entries, self._size), following


def _first(file: BinaryIO, layout: _Layout, size: int) -> int:
    """Offset of the first directory; NDPI has 64-bit offsets in what is a classic TIFF else."""
    file.seek(layout.first)
    near = _pointer(file, layout)
    if layout.pointer != "<I":
        return near
    file.seek(layout.first)
    far = _pointer(file, layout._replace(pointer="<Q"))
    try:
        is_far = near < far < size and _is_ndpi(_directory(file, layout, far, size)[0])
    except SlideError:
        is_far = False
    return far if is_far else near


def _is_ndpi(entries: NDArray[np.void]) -> bool:
    return bool((entries["tag"] == _NDPI).any())


def _directory(file: BinaryIO, layout: _Layout, offset: int, size: int) -> tuple[NDArray[np.void], int]:
    """Entries of a directory, and where the next one is; 0 if there is none."""
    file.seek(offset)
    head = struct.calcsize(layout.number)
    count = struct.unpack(layout.number, file.read(head).ljust(head, b"\0"))[0]
    length = count * layout.entry.itemsize
    if offset + head + length + struct.calcsize(layout.pointer) > size:
        raise SlideError(
            f"it is cut off or damaged: its directory at byte {offset} is not whole; copy the file again"
        )
    entries = np.frombuffer(file.read(length), layout.entry)
    if layout.pointer == "<I" and _is_ndpi(entries):
        return entries, _pointer(file, layout._replace(pointer="<Q"))
    return entries, _pointer(file, layout)


def _pointer(file: BinaryIO, layout: _Layout) -> int:
    length = struct.calcsize(layout.pointer)
    return int(struct.unpack(layout.pointer, file.read(length).ljust(length, b"\0"))[0])


def _bytes_of_values(entries: NDArray[np.void], size: int) -> float:
    """Bytes that a library would hold for a directory: values that lie inside the file, and the entries."""
    lengths = _SIZES[entries["type"]] * entries["count"].astype(float)
    inside = lengths + entries["value"].astype(float) <= size
    return float(lengths[inside & (lengths > 4)].sum()) + _ENTRY * len(entries)


def _subifds(file: BinaryIO, layout: _Layout, entries: NDArray[np.void], size: int) -> list[int]:
    """Offsets of the directories below this one; libraries ignore a list that lies outside the file."""
    found = entries[(entries["tag"] == _SUBIFDS) & np.isin(entries["type"], list(_POINTERS))]
    places: list[int] = []
    for kind, count, value in zip(found["type"], found["count"], found["value"], strict=True):
        pointer = layout.order + _POINTERS[int(kind)]
        width, n = struct.calcsize(pointer), min(int(count), MAX_DIRECTORIES)
        if width * n <= struct.calcsize(layout.pointer):
            data = struct.pack(layout.pointer, int(value))
        elif int(value) + width * n > size:
            continue
        else:
            file.seek(int(value))
            data = file.read(width * n)
        places += [place for (place,) in struct.iter_unpack(pointer, data[: len(data) // width * width])][:n]
    return places
