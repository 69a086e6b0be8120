"""The pixels of a TIFF as the file holds them, read and looked at before anybody decodes them.

Decoders take much for granted: some fill up what is missing, some make a picture of zeros, and some reserve
whatever memory the data ask for. So what an incomplete copy leaves behind is looked for here: zeros in place
of data, data without an end, data of another size than the file's table says.
"""

from __future__ import annotations

import math
import threading
import zlib
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from wsi_saliency.errors import SlideError
from wsi_saliency.messages import one_line

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    import tifffile
    from numpy.typing import NDArray

MAX_SIDE = 10_000_000
"""Longest side of a picture in pixels: at 0.1 µm a metre, which no slide is."""

LARGEST_TILE = 2**26
"""Pixels of a tile or strip that are decoded at once; a file that is one huge strip is refused."""

JPEG = (6, 7, 34892, 33007)
_UNCOMPRESSED = 1
_JPEG_2000 = (33003, 33004, 33005, 34712)
_DEFLATE = (8, 32946)
_WITHOUT_CHECKSUM = (*JPEG, *_JPEG_2000, 22610, 34934, 50001)  # JPEG XR, WebP

_BLANK = bytes(2048)
"""So many zeros in a row are counted in pixels that are not compressed: black, or lost in copying."""
_SHORT_BLANK = 1024


class SlideFile:
    """A file that several threads read from; never mapped, for a mapped file that shrinks kills the process.

    Raises
    ------
    SlideError
        On reading, if the file ends before, or cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self._file = path.open("rb", buffering=0)
        self._lock = threading.Lock()

    def read(self, offset: int, n: int) -> bytes:
        """Return ``n`` bytes from byte ``offset`` on."""
        try:
            with self._lock:
                self._file.seek(offset)
                data = self._file.read(n)
        except OSError as error:
            raise SlideError(f"the file cannot be read any more ({one_line(error)})") from error
        if len(data) < n:
            raise SlideError("the file ends before these pixels do: it has been cut off since it was opened")
        return data

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class Tile(NamedTuple):
    """A tile or strip that a box touches: its number in the file, where it lies, and which plane it is."""

    number: int
    column: int
    row: int
    plane: int


class StoredTiles:
    """The tiles or strips of one level as the file holds them; safe to use from several threads.

    Parameters
    ----------
    file
        The slide's file.
    page
        The directory that describes the level, without `table_faults`.
    checksums
        Whether to look at the checksums of deflate too, which OpenSlide's decoder does not.

    Attributes
    ----------
    tile_w, tile_h : int
        Size of a tile or strip, in level pixels.
    empty, count : int
        Tiles without any data, and tiles altogether.
    blank : set of int
        Tiles not compressed that hold `_BLANK`, as far as tiles have been read.
    """

    def __init__(self, file: SlideFile, page: tifffile.TiffPage, *, checksums: bool = False) -> None:
        self._file, self._checksums = file, checksums
        self._size = page.imagewidth, page.imagelength
        self._compression = int(page.compression)
        self.tile_w, self.tile_h = tile_size(page)
        self._columns, self._rows, self._planes = _layout(page)
        self._offsets = np.array(page.dataoffsets, np.int64)
        self._lengths = np.array(page.databytecounts, np.int64)
        self._seen = np.zeros(len(self._offsets), bool)
        self.empty, self.count = int((self._lengths == 0).sum()), len(self._lengths)
        self.blank: set[int] = set()

    def under(self, level_x: int, level_y: int, level_w: int, level_h: int) -> Iterator[Tile]:
        """Yield the tiles that a box inside the level touches."""
        for row in range(level_y // self.tile_h, -(-(level_y + level_h) // self.tile_h)):
            for column in range(level_x // self.tile_w, -(-(level_x + level_w) // self.tile_w)):
                for plane in range(self._planes):
                    yield Tile((plane * self._rows + row) * self._columns + column, column, row, plane)

    def check(self, level_x: int, level_y: int, level_w: int, level_h: int) -> None:
        """Look at the tiles under a box, each once; raise `SlideError` if one cannot be right."""
        for tile in self.under(level_x, level_y, level_w, level_h):
            if not self._seen[tile.number]:
                self.read(tile.number)
                self._seen[tile.number] = True

    def read(self, index: int) -> bytes | None:
        """Return the data of a tile, None if the file has none.

        Raises
        ------
        SlideError
            If they cannot be those of a whole tile.
        """
        n = int(self._lengths[index])
        if n == 0:
            return None
        data = self._file.read(int(self._offsets[index]), n)
        if self._compression == _UNCOMPRESSED:
            if _BLANK in data and _BLANK in self._inside(data, index):
                self.blank.add(index)
            return data
        fault = _fault(data, self._compression, self.tile_w, self.tile_h)
        if not fault and self._checksums and self._compression in _DEFLATE:
            fault = None if _inflates(data, 4 * self.tile_w * self.tile_h) else "has another checksum"
        if fault:
            raise SlideError(f"tile or strip {index} {fault}: it is damaged, or the copy is incomplete")
        return data

    def _inside(self, data: bytes, index: int) -> bytes:
        """Return the pixels of an uncompressed tile without what fills it up beyond the level's edge."""
        row, column = divmod(index % (self._columns * self._rows), self._columns)
        w = min(self.tile_w, self._size[0] - column * self.tile_w)
        h = min(self.tile_h, self._size[1] - row * self.tile_h)
        pixel = len(data) // (self.tile_w * self.tile_h)
        whole = np.frombuffer(data, np.uint8, self.tile_w * self.tile_h * pixel)
        return whole.reshape(self.tile_h, self.tile_w, pixel)[:h, :w].tobytes()

    def read_rows(
        self, index: int, rows: tuple[int, int], part: tuple[int, int], row_bytes: int
    ) -> bytes | None:
        """Return part of some rows of a strip that is not compressed, None if the strip has no data.

        Parameters
        ----------
        index
            The strip.
        rows
            First and last (excluded) row, counted in the strip.
        part
            First byte of a row, and number of bytes.
        row_bytes
            Bytes of a whole row.
        """
        if self._lengths[index] == 0:
            return None
        (row, end), (start, n) = rows, part
        if end * row_bytes > self._lengths[index]:
            raise SlideError(f"strip {index} is too short: it is damaged, or the copy is incomplete")
        place = int(self._offsets[index]) + row * row_bytes + start
        if n == row_bytes:
            data = self._file.read(place, (end - row) * row_bytes)
        else:
            data = b"".join(self._file.read(place + i * row_bytes, n) for i in range(end - row))
        # Of a row of a wide level, only the part that is asked for is seen.
        if _BLANK[: max(n, _SHORT_BLANK)] in data:
            self.blank.add(index)
        return data


def empty_tiles(levels: Sequence[StoredTiles | None], *, filled: bool = False) -> tuple[str, ...]:
    """Say how many tiles have no data, a line for a slide's warnings; nothing if all have.

    ``filled`` says that the reader fills them from the next finer level, where there is one.

    Raises
    ------
    SlideError
        If no tile of the finest level has data.
    """
    if levels[0] is not None and levels[0].empty == levels[0].count:
        raise SlideError(
            "there are no pixels in the file, though it says where they should be; copy it again"
        )
    where = [f"{t.empty} of {t.count} at level {i}" for i, t in enumerate(levels) if t and t.empty]
    how = "as white at level 0, elsewhere from the next finer level" if filled else "as white"
    return (f"tiles without data in the file are read {how}: {', '.join(where)}",) if where else ()


def blank_tiles(levels: Sequence[StoredTiles | None]) -> tuple[str, ...]:
    """Say how many of the tiles read so far are black in a suspicious way, a line for a slide's warnings."""
    blank = sum(len(tiles.blank) for tiles in levels if tiles)
    words = (
        f"{blank} tiles or strips hold long runs of zeros, which are black; "
        "if the slide is not black there, the file is damaged, or the copy is incomplete"
    )
    return (words,) if blank else ()


def tile_size(page: tifffile.TiffPage) -> tuple[int, int]:
    """Width and height of a tile or strip, in level pixels."""
    if page.is_tiled:
        return page.tilewidth, page.tilelength
    return page.imagewidth, min(page.rowsperstrip, page.imagelength)


def is_raw(page: tifffile.TiffPage) -> bool:
    """Whether a page has strips from which rows can be read as they are."""
    plain = page.compression == _UNCOMPRESSED and page.predictor == 1 and page.fillorder == 1
    return bool(plain and not page.is_tiled)


def _layout(page: tifffile.TiffPage) -> tuple[int, int, int]:
    """Columns, rows and planes of tiles."""
    w, h = tile_size(page)
    planes = page.samplesperpixel if page.planarconfig == 2 else 1
    return -(-page.imagewidth // w), -(-page.imagelength // h), planes


def table_faults(page: tifffile.TiffPage, file_size: int) -> Iterator[str]:
    """Say what is wrong with a level's size and with the table that says where its tiles are."""
    w, h = page.imagewidth, page.imagelength
    if not all(isinstance(number, int) for number in (w, h, *tile_size(page), page.samplesperpixel)):
        yield "sizes that are no whole numbers; the file is damaged"
        return
    if not (0 < w <= MAX_SIDE and 0 < h <= MAX_SIDE):
        yield f"a picture of {w} × {h} pixels, which no slide has; the file is damaged"
        return
    tile_w, tile_h = tile_size(page)
    if tile_w <= 0 or tile_h <= 0:
        yield f"tiles of {tile_w} × {tile_h} pixels; the file is damaged"
        return
    if tile_w * tile_h > LARGEST_TILE and not is_raw(page):
        yield f"tiles or strips of {tile_w} × {tile_h} pixels; re-save the slide as tiled TIFF"
        return
    needed = math.prod(_layout(page))
    if len(page.dataoffsets) != needed or len(page.databytecounts) != needed:
        found = min(len(page.dataoffsets), len(page.databytecounts))
        yield (
            f"{w} × {h} pixels are {needed} tiles or strips, its table has {found}; "
            "it is damaged, or the copy is incomplete"
        )
        return
    offsets, lengths = _numbers(page.dataoffsets), _numbers(page.databytecounts)
    filled = lengths != 0
    if (lengths < 0).any() or (offsets[filled] < 8).any():
        yield "its table has tiles where none can be; the file is damaged"
    if (offsets > file_size - lengths)[filled].any():
        yield "the file is truncated: pixels lie beyond its end; copy it again"


def _numbers(table: Sequence[int]) -> NDArray[np.int64]:
    """Return a table as numbers, all -1 if there are some that no file is long enough for."""
    try:
        return np.array(table, np.int64)
    except OverflowError:
        return np.full(len(table), -1)


def _fault(data: bytes, compression: int, tile_w: int, tile_h: int) -> str | None:
    """Say what shows that compressed data are not those of a whole tile, None if nothing does."""
    zeros = bytes(max(512, tile_w * tile_h // 64))  # not even a white JPEG has so many
    if zeros in data and compression in _WITHOUT_CHECKSUM:
        return f"has {len(zeros)} zeros in place of data"
    size = None
    if compression in JPEG:
        if data.rfind(b"\xff\xd9") < 0:
            return "has no end"
        size = _jpeg_size(data)
    elif compression in _JPEG_2000:
        size = _jpeg_2000_size(data)
    if size is not None and (size[0] > tile_w or size[1] > tile_h):
        return f"says that it is {size[0]} × {size[1]} pixels large instead of {tile_w} × {tile_h}"
    return None


def _inflates(data: bytes, most: int) -> bool:
    """Whether deflated data are whole, to the checksum at their end, and no longer than ``most`` bytes."""
    inflating = zlib.decompressobj()
    try:
        inflating.decompress(data, most)
    except zlib.error:
        return False
    return inflating.eof


def _jpeg_size(data: bytes) -> tuple[int, int] | None:
    """Width and height in the frame header of a JPEG, None if it has none where one belongs."""
    place = 2
    while place + 9 <= len(data) and data[place] == 0xFF:
        kind = data[place + 1]
        if 0xC0 <= kind <= 0xCF and kind not in (0xC4, 0xC8, 0xCC):
            h, w = data[place + 5 : place + 7], data[place + 7 : place + 9]
            return int.from_bytes(w, "big"), int.from_bytes(h, "big")
        place += 1 if kind == 0xFF else 2 + int.from_bytes(data[place + 2 : place + 4], "big")
    return None


def _jpeg_2000_size(data: bytes) -> tuple[int, int] | None:
    """Width and height of a JPEG 2000 code stream, alone or in a JP2 file."""
    start = data.find(b"\xff\x4f\xff\x51")
    if not 0 <= start <= len(data) - 24:
        return None
    right, bottom, left, top = (
        int.from_bytes(data[start + at : start + at + 4], "big") for at in (8, 12, 16, 20)
    )
    return right - left, bottom - top
