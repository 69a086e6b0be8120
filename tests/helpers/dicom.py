"""Bare DICOM files: elements without pixels, enough to tell which series a file is of."""

from __future__ import annotations

import struct

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
