from __future__ import annotations

import gzip
import io
import lzma
import tarfile
import zipfile

import numpy as np
import pytest
import tifffile
from PIL import Image

from wsi_saliency.filetypes import HEAD, FileType, read_head, type_of


def picture(kind):
    file = io.BytesIO()
    Image.new("RGB", (30, 30)).save(file, kind)
    return file.getvalue()


def tiff(big, order):
    file = io.BytesIO()
    tifffile.imwrite(file, np.zeros((8, 8), np.uint8), bigtiff=big, byteorder=order)
    return file.getvalue()


def tar():
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("a"))
    return file.getvalue()


def zipped():
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a", "b")
    return file.getvalue()


def numpy():
    file = io.BytesIO()
    np.save(file, np.zeros(3))
    return file.getvalue()


@pytest.mark.parametrize(
    ("content", "name", "sort"),
    [
        *((picture(kind), f"a {kind} picture", "picture") for kind in ("JPEG", "PNG", "GIF")),
        (picture("WEBP"), "a WebP picture", "picture"),
        (picture("JPEG2000"), "a JPEG 2000 picture", "picture"),
        (picture("PDF"), "a PDF document", "picture"),
        *((tiff(big, order), "a TIFF picture", "tiff") for big in (False, True) for order in "<>"),
        (bytes(128) + b"DICM", "a DICOM file", "dicom"),
        (gzip.compress(b"a", mtime=0), "a gzip archive", "packed"),
        (lzma.compress(b"a"), "an xz archive", "packed"),
        (tar(), "a tar archive", "packed"),
        (zipped(), "a zip archive", "packed"),
        (numpy(), "a NumPy array", "data"),
        (b"version https://git-lfs.github.com/spec/v1\noid", "a pointer of Git LFS", "pointer"),
        ("\ufeff <!DOCTYPE HTML>".encode(), "a web page", "page"),
        (b"<?xml version='1.0'?>", "an XML text", "text"),
        (b" [1]", "a JSON text", "text"),
        ("a µ".encode()[:-1], "a text file", "text"),
        (("切" * HEAD).encode(), "a text file", "text"),
    ],
)
def test_a_file_is_known_by_its_first_bytes(tmp_path, content, name, sort):
    path = tmp_path / "file"
    path.write_bytes(content)
    assert type_of(read_head(path)) == FileType(name, sort)


@pytest.mark.parametrize("content", [bytes(HEAD), bytes(range(256)), b"garb\x1b[31m\0\xff", b"\x80\x04\x95"])
def test_what_is_not_known_has_no_type(content):
    assert type_of(content) is None


def test_no_more_than_the_head_is_read(tmp_path):
    (tmp_path / "file").write_bytes(b"a" * 2 * HEAD)
    assert read_head(tmp_path / "file") == b"a" * HEAD
