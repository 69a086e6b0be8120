"""Slides of which one tile is damaged in its compressed pixels, and how another decoder reads them.

JPEG, JPEG 2000 and LZW have no checksum: much damage leaves data that are whole, of another picture. So what
a slide is read as is compared with another decoder, the strictest there is: it has to be the same, or
refused.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from random import Random

import numpy as np
import openslide
import tifffile
from numpy.typing import NDArray
from PIL import Image

from tests.helpers.paths import REAL_SLIDES
from tests.helpers.slides import write_ome_tiff, write_svs, write_tiff
from wsi_saliency.errors import SlideError
from wsi_saliency.geometry import Region
from wsi_saliency.slides.opening import open_slide

Pixels = NDArray[np.uint8]
Stretch = tuple[int, int]
"""First byte of a tile's data in the file, and how many there are."""

_ITEM = b"\xfe\xff\x00\xe0"
_PIXELS = b"\xe0\x7f\x10\x00OB\0\0\xff\xff\xff\xff"
_JPEG_SCAN, _JPEG_2000_PACKETS, _JPEG_END = b"\xff\xda", b"\xff\x93", b"\xff\xd9"


@dataclass(frozen=True)
class Kind:
    """A kind of slide: how it is written, where its tiles are, and what else can read all of its pixels."""

    write: Callable[[Path, Pixels], Path]
    name: str
    other: Callable[[Path], Pixels]
    tiles: Callable[[Path], list[Stretch]]


def by_openslide(path: Path) -> Pixels:
    """Read with OpenSlide, which refuses what its JPEG decoder warns of, where imagecodecs is judged."""
    with openslide.OpenSlide(path) as slide:
        return np.asarray(slide.read_region((0, 0), 0, slide.dimensions).convert("RGB"))


def by_tifffile(path: Path) -> Pixels:
    """Read with imagecodecs, where OpenSlide and its libtiff are judged."""
    with tifffile.TiffFile(path) as tiff:
        return np.asarray(tiff.pages.first.asarray())


def by_pillow(path: Path) -> Pixels:
    """Read with Pillow and its libtiff, where tifffile and its imagecodecs are judged."""
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB"))


def tile_by_tile(path: Path) -> Pixels:
    """Read JPEG 2000 tiles with Pillow, which does not know them in a TIFF."""
    with tifffile.TiffFile(path) as tiff:
        page = tiff.pages.first
        out, side = np.empty(page.shape, np.uint8), page.tilewidth
    data = path.read_bytes()
    for number, (start, length) in enumerate(tiff_tiles(path)):
        row, column = divmod(number, -(-out.shape[1] // side))
        with Image.open(io.BytesIO(data[start : start + length])) as tile:
            box = out[row * side : (row + 1) * side, column * side : (column + 1) * side]
            box[:] = np.asarray(tile)[: box.shape[0], : box.shape[1]]
    return out


def dicom_by_pillow(path: Path) -> Pixels:
    """Read the frames of the DICOM slide, row by row, with Pillow."""
    data = path.read_bytes()
    frames = []
    for start, length in dicom_tiles(path):
        with Image.open(io.BytesIO(data[start : start + length])) as frame:
            frames.append(np.asarray(frame.convert("RGB")))
    with open_slide(path) as slide:
        size = slide.size
    across = -(-size.w // frames[0].shape[1])
    rows = [np.hstack(frames[i : i + across]) for i in range(0, len(frames), across)]
    return np.vstack(rows)[: size.h, : size.w]


def tiff_tiles(path: Path) -> list[Stretch]:
    """Find the tiles of the finest level of a TIFF."""
    with tifffile.TiffFile(path) as tiff:
        page = tiff.pages.first
        return list(zip(page.dataoffsets, page.databytecounts, strict=True))


def dicom_tiles(path: Path) -> list[Stretch]:
    """Find the frames of a DICOM file, each of one item; the first item is a table."""
    data, found = path.read_bytes(), []
    place = data.index(_PIXELS) + len(_PIXELS)
    while data[place : place + 4] == _ITEM:
        (length,) = struct.unpack_from("<I", data, place + 4)
        found.append((place + 8, length))
        place += 8 + length
    return found[1:]


def _svs_of_jpeg_2000(path: Path, rgb: Pixels) -> Path:
    write_svs(path, [rgb])
    with tifffile.TiffFile(path) as tiff:
        description = tiff.pages.first.description
    how = {"compression": 33005, "tile": (256, 256), "photometric": "rgb", "metadata": None}
    tifffile.imwrite(path, rgb, description=description, **how)
    return path


def _copied(path: Path, rgb: Pixels) -> Path:
    path.write_bytes((REAL_SLIDES / "jpeg.dicom").read_bytes())
    return path


def kinds() -> dict[str, Kind]:
    """Return the kinds of slides, those of DICOM where there is one to be damaged."""

    def tiff(write: Callable[..., Path], other: Callable[[Path], Pixels], name: str, **how: object) -> Kind:
        return Kind(lambda path, rgb: write(path, [rgb], **how), name, other, tiff_tiles)

    found = {
        "TIFF, JPEG": tiff(write_tiff, by_tifffile, "s.tif", quality=90),
        "TIFF, LZW": tiff(write_tiff, by_tifffile, "s.tif", compression="lzw"),
        "TIFF, deflate": tiff(write_tiff, by_tifffile, "s.tif", compression="deflate"),
        "TIFF, JPEG 2000": Kind(partial(_plain, compression="jpeg2000"), "s.tif", tile_by_tile, tiff_tiles),
        "OME-TIFF, JPEG": tiff(write_ome_tiff, by_openslide, "s.ome.tif", quality=90),
        "OME-TIFF, deflate": tiff(write_ome_tiff, by_pillow, "s.ome.tif"),
        "SVS, JPEG": tiff(write_svs, by_tifffile, "s.svs", quality=90),
        "SVS, JPEG 2000": Kind(_svs_of_jpeg_2000, "s.svs", by_tifffile, tiff_tiles),
    }
    if (REAL_SLIDES / "jpeg.dicom").exists():
        found["DICOM, JPEG"] = Kind(_copied, "s.dcm", dicom_by_pillow, dicom_tiles)
    return found


def _plain(path: Path, rgb: Pixels, **how: object) -> Path:
    return write_tiff(path, [rgb], **how)


# ---------------------------------------------------------------------------------------------- damage


def flipped(data: bytearray, rng: Random) -> None:
    """Flip one to eight bits."""
    for _ in range(rng.randint(1, 8)):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)


def overwritten(data: bytearray, rng: Random) -> None:
    """Put other bytes in place of up to a quarter of them."""
    start = rng.randrange(len(data))
    end = min(len(data), start + rng.randint(1, 1 + len(data) // 4))
    data[start:end] = rng.randbytes(end - start)


def ended(data: bytearray, rng: Random) -> None:
    """Put the mark that ends a JPEG somewhere, and nothing behind it."""
    start = rng.randrange(len(data))
    data[start:] = (_JPEG_END + b"\xff" * len(data))[: len(data) - start]


DAMAGE = (flipped, overwritten, ended)


def damage(path: Path, tiles: list[Stretch], rng: Random) -> None:
    """Damage the compressed pixels of one tile, not what stands before them."""
    data = bytearray(path.read_bytes())
    start, length = rng.choice(tiles)
    tile = data[start : start + length]
    head = max(0, *(tile.find(mark) + 2 for mark in (_JPEG_SCAN, _JPEG_2000_PACKETS)))
    if tile[:2] not in (b"\xff\xd8", b"\xff\x4f"):
        head = 0
    elif tile[:2] == b"\xff\xd8":
        head += int.from_bytes(tile[head : head + 2], "big")
    pixels = tile[head:]
    rng.choice(DAMAGE)(pixels, rng)
    data[start + head : start + length] = pixels
    path.write_bytes(data)


# --------------------------------------------------------------------------------------------- verdicts


def read(path: Path) -> Pixels | str:
    """Read a slide as a run does; return the refusal if there is one."""
    try:
        with open_slide(path) as slide:
            whole = Region(0, 0, slide.size.w, slide.size.h)
            return slide.read(whole, slide.size)
    except SlideError as error:
        return str(error)


def verdict(path: Path, kind: Kind, before: Pixels) -> tuple[str, str | None]:
    """Say what came of a slide with a damaged tile, and what was lost."""
    found = read(path)
    if isinstance(found, str):
        return "refused by name", None if path.name in found else f"no name: {found}"
    if np.array_equal(found, before):
        return "no pixel changed", None
    try:
        other = kind.other(path)
    except Exception:  # any codec's
        lost = "white or black" if blanked(found, before) else None
        return "read where another decoder refuses", lost
    if np.array_equal(found, other):
        return "as another decoder reads it", None
    return "otherwise than another decoder", f"{(found != other).mean():.2%} of the values"


def blanked(found: Pixels, before: Pixels) -> bool:
    """Whether a sixteenth of a tile or more has become white or black."""
    blank, was = (((x == 0) | (x == 255)).all(axis=2) for x in (found, before))
    return int((blank & ~was).sum()) >= 256 * 256 // 16


def damaged_tiles(
    here: Path, rgb: Pixels, times: int, rng: Random
) -> Iterator[tuple[str, Iterator[tuple[str, str | None]]]]:
    """Yield for each kind of slide what comes of ``times`` of them, each with another damaged tile."""
    for name, kind in kinds().items():
        path = kind.write(here / kind.name, rgb)
        yield name, _verdicts(path, kind, times, rng)


def _verdicts(path: Path, kind: Kind, times: int, rng: Random) -> Iterator[tuple[str, str | None]]:
    whole, tiles, before = path.read_bytes(), kind.tiles(path), read(path)
    assert not isinstance(before, str), before
    for _ in range(times):
        path.write_bytes(whole)
        damage(path, tiles, rng)
        yield verdict(path, kind, before)
    path.unlink()
