"""File types: what a file is by its first bytes, whatever it is called."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from pathlib import Path

Kind = Literal["safetensors", "zip", "pickle"]

HEAD = 512  # bytes
# What torch.save put in front before it wrote zip archives: a pickled number.
_TORCH_BEFORE_ZIP = bytes.fromhex("6cfc9c46f9206aa85019")

# Where, which bytes, and what such a file is.
_OTHERS: tuple[tuple[int, bytes, str], ...] = (
    (0, b"version https://git-lfs", "a pointer of Git LFS: git lfs pull gets the file itself"),
    (0, b"\x89HDF\r\n", "an HDF5 file, as Keras writes"),
    (0, b"\x93NUMPY", "a NumPy array"),
    (0, b"\x89PNG", "a PNG picture"),
    (0, b"\xff\xd8\xff", "a JPEG picture"),
    (0, b"II*\0", "a TIFF picture, perhaps a slide"),
    (0, b"MM\0*", "a TIFF picture, perhaps a slide"),
    (0, b"II+\0", "a TIFF picture, perhaps a slide"),
    (0, b"%PDF", "a PDF document"),
    (0, b"\x1f\x8b", "compressed by gzip: unpack it first"),
    (0, b"BZh", "compressed by bzip2: unpack it first"),
    (0, b"\xfd7zXZ", "compressed by xz: unpack it first"),
    (0, b"7z\xbc\xaf", "a 7-Zip archive: unpack it first"),
    (0, b"GGUF", "a GGUF file, as llama.cpp writes"),
    (4, b"TFL3", "a TensorFlow Lite model"),
    (257, b"ustar", "a tar archive: unpack it first"),
)


def kind_of(head: bytes) -> Kind | None:
    """Tell the kind of a file that may hold weights; None of any other.

    Parameters
    ----------
    head
        Its first `HEAD` bytes.
    """
    if head[8:9] == b"{" and b"\0" in head[:8]:  # the length of a header, and the header, JSON
        return "safetensors"
    if head.startswith(b"PK\x03\x04"):
        return "zip"
    return "pickle" if _TORCH_BEFORE_ZIP in head[:32] else None


def read_head(path: Path) -> bytes:
    """Return the first `HEAD` bytes of a file."""
    with path.open("rb") as file:
        return file.read(HEAD)


def what_is(head: bytes) -> str:
    """Say what a file that holds no weights is, by its first `HEAD` bytes."""
    if not head:
        return "an empty file"
    for offset, magic, what in _OTHERS:
        if head[offset:].startswith(magic):
            return what
    if head.startswith(b"\x80") and head[1:2] <= b"\x05":
        return "a pickle, which would have to run code, and no state dict of torch.save"
    if text := _text(head):
        return text
    if b"onnx" in head.lower() or b"pytorch" in head[:64].lower():  # the name of what made it comes first
        return "probably an ONNX model"
    return "neither a safetensors nor a PyTorch file"


def _text(head: bytes) -> str | None:
    """Say which kind of text it is; None of what is not text. The last character may be cut."""
    text = head.decode("utf-8", errors="ignore").lstrip("\ufeff")
    if len(text.encode()) < len(head) - 6 or not all(c.isprintable() or c.isspace() for c in text):
        return None
    start = text.lstrip()[:16].lower()
    if start.startswith(("<!doctype", "<html")):
        return "a web page: the link led to a page and not to the file"
    if start.startswith("<"):
        return "an XML text"
    return "a JSON text" if start.startswith(("{", "[")) else "a text file"
