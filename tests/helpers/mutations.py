"""Slides that are damaged on purpose: what disks, networks, writers and hostile people do to files."""

from __future__ import annotations

import io
import struct
from typing import TYPE_CHECKING

import tifffile

if TYPE_CHECKING:
    from collections.abc import Callable
    from random import Random

    Mutate = Callable[[bytearray, Random], None]

_CODES = {1: "B", 3: "H", 4: "I", 13: "I", 16: "Q", 18: "Q"}  # of TIFF's types of whole numbers
_ABSURD = (0, 1, 7, 2**15, 10**6, 2**31 - 1, 2**32 - 1, 2**63 - 1)
_DICOM_NUMBERS = (
    *((0x28, 0x2), (0x28, 0x8), (0x28, 0x10), (0x28, 0x11), (0x28, 0x100), (0x28, 0x101)),
    *((0x48, 0x6), (0x48, 0x7), (0x5200, 0x9230), (0x7FE0, 0x10), (0x2, 0x0), (0x8, 0x16)),
)  # samples, frames, rows, columns, bits; the whole matrix; frames' places, pixels, lengths, class


def flip_bits(data: bytearray, rng: Random) -> None:
    """Flip one to eight bits anywhere."""
    for _ in range(rng.randint(1, 8)):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)


def truncate(data: bytearray, rng: Random) -> None:
    """Cut the end off."""
    del data[rng.randrange(1, len(data)) :]


def blank(data: bytearray, rng: Random) -> None:
    """Put zeros in place of a stretch."""
    start = rng.randrange(len(data))
    end = min(len(data), start + rng.randint(1, 1 + len(data) // 4))
    data[start:end] = bytes(end - start)


def flip_directory_bits(data: bytearray, rng: Random) -> None:
    """Flip one to four bits of a directory of a TIFF."""
    tags = _tags(data)
    for _ in range(rng.randint(1, 4)):
        data[rng.choice(tags).offset + rng.randrange(12)] ^= 1 << rng.randrange(8)


def swap_tags(data: bytearray, rng: Random) -> None:
    """Let two tags of a directory have each other's values."""
    a, b = rng.sample(_tags(data, first_page=True), 2)
    data[a.offset : a.offset + 2], data[b.offset : b.offset + 2] = (
        data[b.offset : b.offset + 2],
        data[a.offset : a.offset + 2],
    )


def loop(data: bytearray, rng: Random) -> None:
    """Let a directory lead to itself, or to an earlier one."""
    with tifffile.TiffFile(io.BytesIO(bytes(data))) as file:
        pages = [page.aspage() for page in file.pages]
        last = rng.randrange(len(pages))
        form, big = file.tiff.offsetformat, file.tiff.offsetsize
        place = pages[last].offset + (8 if file.is_bigtiff else 2) + len(pages[last].tags) * file.tiff.tagsize
        data[place : place + big] = struct.pack(form, pages[rng.randint(0, last)].offset)


def absurd(*numbers: int) -> Mutate:
    """Put a number that cannot be into tags with these numbers."""

    def mutate(data: bytearray, rng: Random) -> None:
        fitting = [tag for tag in _tags(data) if tag.code in numbers and tag.dtype in _CODES]
        if not fitting:
            flip_directory_bits(data, rng)
            return
        tag = rng.choice(fitting)
        form = tag.parent.tiff.byteorder + _CODES[tag.dtype]
        size = struct.calcsize(form)
        place = tag.valueoffset + rng.randrange(tag.count) * size
        data[place : place + size] = struct.pack(form, rng.choice(_ABSURD) % 2 ** (8 * size))

    return mutate


def harm_dicom_header(data: bytearray, rng: Random) -> None:
    """Write nonsense into the head of an element that matters, or behind it."""
    tags = [struct.pack("<HH", *tag) for tag in _DICOM_NUMBERS]
    places = [place for tag in tags if (place := data.find(tag, 128)) >= 0]
    place = rng.choice(places) + rng.randrange(4, 12)
    data[place : place + 2] = rng.choice((b"\0\0", b"\xff\xff", rng.randbytes(2)))


def flip_dicom_header_bits(data: bytearray, rng: Random) -> None:
    """Flip bits in what stands before the pixels."""
    for _ in range(rng.randint(1, 4)):
        data[rng.randrange(128, min(len(data), 4096))] ^= 1 << rng.randrange(8)


ANY: dict[str, Mutate] = {"bits flipped": flip_bits, "cut off": truncate, "a stretch of zeros": blank}
TIFF: dict[str, Mutate] = ANY | {
    "directory bits flipped": flip_directory_bits,
    "tags swapped": swap_tags,
    "directory loop": loop,
    "absurd size": absurd(256, 257, 258, 277),
    "absurd tile size": absurd(322, 323),
    "tiles beyond the file": absurd(324),
    "absurd tile lengths": absurd(325),
}
DICOM: dict[str, Mutate] = ANY | {
    "header bits flipped": flip_dicom_header_bits,
    "nonsense in the header": harm_dicom_header,
}


def kinds_for(whole: bytes) -> dict[str, Mutate]:
    """Return the ways to damage a file of its sort, by what is done."""
    return DICOM if whole[128:132] == b"DICM" else TIFF


def mutated(whole: bytes, kind: str, rng: Random) -> bytes:
    """Return a damaged copy."""
    data = bytearray(whole)
    kinds_for(whole)[kind](data, rng)
    return bytes(data)


def _tags(data: bytearray, *, first_page: bool = False) -> list[tifffile.TiffTag]:
    """Return the tags of a TIFF's directories."""
    with tifffile.TiffFile(io.BytesIO(bytes(data))) as file:
        pages = [page.aspage() for page in file.pages]
    return [tag for page in pages[: 1 if first_page else None] for tag in page.tags]
