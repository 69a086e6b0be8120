"""What a file is by its first bytes, whatever it is called; what to do about it is for the reader to say."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple

if TYPE_CHECKING:
    from pathlib import Path

HEAD = 1024
"""Bytes at the start of a file that are enough for every type."""

Sort = Literal["picture", "tiff", "dicom", "microscopy", "hdf5", "packed", "pointer", "page", "text", "data"]
"""Types that call for the same advice."""


class FileType(NamedTuple):
    """What a file is: its name with an article, for a sentence, and its sort."""

    name: str
    sort: Sort


_SIGNATURES: tuple[tuple[int, bytes, FileType], ...] = (
    (0, b"version https://git-lfs", FileType("a pointer of Git LFS", "pointer")),
    (0, b"\xff\xd8\xff", FileType("a JPEG picture", "picture")),
    (0, b"\x89PNG", FileType("a PNG picture", "picture")),
    (0, b"GIF8", FileType("a GIF picture", "picture")),
    (4, b"jP  ", FileType("a JPEG 2000 picture", "picture")),
    (8, b"WEBP", FileType("a WebP picture", "picture")),
    (0, b"%PDF", FileType("a PDF document", "picture")),
    (0, b"II*\0", FileType("a TIFF picture", "tiff")),
    (0, b"MM\0*", FileType("a TIFF picture", "tiff")),
    (0, b"II+\0", FileType("a TIFF picture", "tiff")),
    (0, b"MM\0+", FileType("a TIFF picture", "tiff")),
    (128, b"DICM", FileType("a DICOM file", "dicom")),
    (0, b"ZISRAWFILE", FileType("a Zeiss CZI file", "microscopy")),
    (0, b"\x89HDF", FileType("an HDF5 file", "hdf5")),
    (0, b"PK\x03\x04", FileType("a zip archive", "packed")),
    (0, b"\x1f\x8b", FileType("a gzip archive", "packed")),
    (0, b"BZh", FileType("a bzip2 archive", "packed")),
    (0, b"\xfd7zXZ", FileType("an xz archive", "packed")),
    (0, b"7z\xbc\xaf", FileType("a 7-Zip archive", "packed")),
    (0, b"Rar!", FileType("a RAR archive", "packed")),
    (257, b"ustar", FileType("a tar archive", "packed")),
    (0, b"\x93NUMPY", FileType("a NumPy array", "data")),
    (0, b"GGUF", FileType("a GGUF file, as llama.cpp writes", "data")),
    (4, b"TFL3", FileType("a TensorFlow Lite model", "data")),
)


def read_head(path: Path) -> bytes:
    """Return the first `HEAD` bytes of a file."""
    with path.open("rb") as file:
        return file.read(HEAD)


def type_of(head: bytes) -> FileType | None:
    """Tell the type of a file by its first `HEAD` bytes; None if it is of none that is known."""
    if is_safetensors(head):
        return FileType("a safetensors file, the weights of a classifier", "data")
    signed = (kind for offset, sign, kind in _SIGNATURES if head[offset:].startswith(sign))
    return next(signed, None) or _text_type(head)


def is_safetensors(head: bytes) -> bool:
    """Tell whether a file begins like safetensors: the length of a header, 8 bytes, and the header, JSON."""
    return head[8:9] == b"{" and b"\0" in head[:8]


def _text_type(head: bytes) -> FileType | None:
    """Tell the type of a text, None of what is no text; its last character may be cut."""
    text = head.decode("utf-8", errors="ignore").lstrip("\ufeff")
    if len(text.encode()) < len(head) - 6 or not all(c.isprintable() or c.isspace() for c in text):
        return None
    start = text.lstrip()[:16].lower()
    if start.startswith(("<!doctype", "<html")):
        return FileType("a web page", "page")
    if start.startswith("<"):
        return FileType("an XML text", "text")
    return FileType("a JSON text" if start.startswith(("{", "[")) else "a text file", "text")
