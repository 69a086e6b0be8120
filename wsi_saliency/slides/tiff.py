"""Plain and OME-TIFF slides, read with tifffile where OpenSlide refuses or would misread.

Only the tiles or strips under a region are decoded, so memory does not depend on the slide's size.
"""

from __future__ import annotations

import math
import threading
import xml.etree.ElementTree as ElementTree
from collections import OrderedDict
from typing import TYPE_CHECKING, Protocol

import numpy as np
import tifffile

from wsi_saliency.errors import SlideError
from wsi_saliency.geometry import Mpp, Size
from wsi_saliency.slides.resampling import LevelPixels
from wsi_saliency.slides.slide import Slide, Spacing, level_of, spacing_of, spacing_of_plain_tiff

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from numpy.typing import NDArray

CACHE_BYTES = 128 * 2**20
"""Decoded tiles or strips kept per slide, so that neighbouring reads do not decode them twice."""

LARGEST_SEGMENT = 2**26
"""Pixels of a tile or strip that are decoded at once; a file that is one huge strip is refused."""

_MICROMETRES = {"m": 1e6, "cm": 1e4, "mm": 1e3, "µm": 1.0, "μm": 1.0, "um": 1.0, "nm": 1e-3, "in": 25400.0}
_RESOLUTION_UNITS = {2: 25400.0, 3: 10000.0}  # TIFF 6.0: inch, centimetre
_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB, _YCBCR = 0, 1, 2, 6
_ASSOCIATED_ALPHA = 1
_JPEG_FAMILY = (6, 7, 34892, 33007)  # decoded to RGB by the codec


class _LevelStore(Protocol):
    """Where the pixels of one level come from; safe to use from several threads."""

    def read(self, level_x: int, level_y: int, level_w: int, level_h: int) -> NDArray[np.uint8]:
        """Return a box inside the level as (level_h, level_w, samples) uint8."""


class TiffSlide(Slide):
    """A TIFF slide read by tifffile; the file is read under a lock, and decoded outside it.

    Levels are the SubIFDs of the first large page, or the smaller pages of the same shape.

    Parameters
    ----------
    path
        The file.
    mpp
        µm per level-0 pixel, in place of what the file says.

    Raises
    ------
    SlideError
        If the file is no TIFF, is damaged, or has other pixels than 8-bit RGB or grey.
    """

    def __init__(self, path: Path, mpp: float | None = None) -> None:
        self._tiff: tifffile.TiffFile | None = None
        try:
            self._tiff = tifffile.TiffFile(path)
            pages = _level_pages(self._tiff)
            _check(self._tiff, pages)
            stores = _stores(path, self._tiff, pages)
            spacing, power = _spacing_and_power(self._tiff, pages[0], mpp)
        # Any exception: which one a damaged file draws from a parser of many formats is its own business.
        except Exception as error:
            self.close()
            reason = _one_line(error) if isinstance(error, SlideError) else _no_slide(error)
            raise SlideError(f"{path}: {reason}") from error
        sizes = [Size(page.imagewidth, page.imagelength) for page in pages]
        super().__init__(path, "tiff", tuple(level_of(sizes[0], size) for size in sizes), spacing, power)
        self._to_rgb = _rgb_converter(pages[0])
        self._stores: list[_LevelStore] = stores

    def close(self) -> None:
        """Close the file and let go of decoded tiles."""
        self._stores = []
        if self._tiff is not None:
            self._tiff.close()

    def _read_level(self, level: int, level_x: int, level_y: int, level_w: int, level_h: int) -> LevelPixels:
        if not self._stores:
            raise SlideError("the slide is closed")
        return LevelPixels(self._to_rgb(self._stores[level].read(level_x, level_y, level_w, level_h)))


def openslide_misreads(path: Path) -> bool:
    """Whether a TIFF that OpenSlide would take as generic needs tifffile.

    OpenSlide sees neither the SubIFD pyramid nor the pixel size of OME-TIFF, shows the first channel of a
    stack as if it were the picture, and cuts 16-bit pixels to their upper byte without a word.
    """
    try:
        with tifffile.TiffFile(path) as tiff:
            return bool(tiff.is_ome) or any(page.bitspersample != 8 for page in _level_pages(tiff))
    except Exception:  # see TiffSlide: then OpenSlide has a look, and says what is wrong
        return False


def _level_pages(tiff: tifffile.TiffFile) -> list[tifffile.TiffPage]:
    """Find the pyramid: the largest page and those which show the same in smaller, finest first."""
    tops = [page.aspage() for page in tiff.pages]
    if not tops:
        raise SlideError("the file is truncated: there is no picture in it")
    base = max(tops, key=_area)
    subifds = [page.aspage() for page in base.pages or ()]
    smaller = [page for page in subifds or tops if _is_level_of(base, page, bool(subifds))]
    return [base, *sorted(smaller, key=_area, reverse=True)]


def _area(page: tifffile.TiffPage) -> int:
    return int(page.imagewidth * page.imagelength)


def _is_level_of(base: tifffile.TiffPage, page: tifffile.TiffPage, subifd: bool) -> bool:
    """Whether a page is a smaller version of another: same kind of pixels, same shape up to rounding."""
    shrunk_x, shrunk_y = page.imagewidth / base.imagewidth, page.imagelength / base.imagelength
    same_shape = abs(shrunk_x - shrunk_y) <= 1 / base.imagewidth + 1 / base.imagelength
    same_pixels = (page.samplesperpixel, page.bitspersample) == (base.samplesperpixel, base.bitspersample)
    # A thumbnail of a slide with strips says that it is reduced; a label of a similar shape does not.
    meant = subifd or page.is_reduced or (page.is_tiled and base.is_tiled)
    return meant and same_shape and same_pixels and max(shrunk_x, shrunk_y) < 1


def _check(tiff: tifffile.TiffFile, pages: list[tifffile.TiffPage]) -> None:
    """Raise `SlideError` with the reason if a slide's pixels cannot be shown as 8-bit RGB."""
    refusals = (refusal for page in pages for refusal in _refusals(page, tiff.filehandle.size))
    for refusal in (*refusals, *_ome_refusals(tiff, pages[0])):
        raise SlideError(refusal)


def _refusals(page: tifffile.TiffPage, file_size: int) -> Iterator[str]:
    if page.bitspersample != 8 or page.dtype != np.uint8:
        kind = "unknown" if page.dtype is None else page.dtype
        yield f"pixels are {page.bitspersample}-bit ({kind}); only 8-bit RGB or grey TIFF can be read"
    allowed = {_WHITE_IS_ZERO: (1,), _BLACK_IS_ZERO: (1,), _RGB: (3, 4), _YCBCR: (3,)}
    if page.samplesperpixel not in allowed.get(page.photometric, ()):
        yield f"{page.samplesperpixel} samples per pixel, photometric {page.photometric}; not RGB or grey"
    if page.photometric == _YCBCR and page.compression not in _JPEG_FAMILY:
        yield "YCbCr pixels outside JPEG; re-save the slide as RGB"
    if page.imagedepth != 1:
        yield f"a stack of {page.imagedepth} planes; only flat pictures can be read"
    ends = (o + n for o, n in zip(page.dataoffsets, page.databytecounts, strict=False))
    if max(ends, default=0) > file_size:
        yield "the file is truncated: pixels lie beyond its end"
    if not page.is_memmappable and math.prod(_segment_shape(page)) > LARGEST_SEGMENT:
        yield f"strips of {math.prod(_segment_shape(page)) / 1e6:.0f} Mpx; re-save the slide as tiled TIFF"


def _ome_refusals(tiff: tifffile.TiffFile, page: tifffile.TiffPage) -> Iterator[str]:
    pixels = _ome_element(tiff, "Pixels")
    if pixels is not None:
        values = math.prod(int(pixels.get(name, 1)) for name in ("SizeC", "SizeZ", "SizeT"))
        if values > page.samplesperpixel:
            yield f"{values} channels or planes in the OME-TIFF; only one RGB or grey picture can be read"


def _segment_shape(page: tifffile.TiffPage) -> tuple[int, int]:
    """Height and width of a tile or strip, in level pixels."""
    if page.is_tiled:
        return page.tilelength, page.tilewidth
    return min(page.rowsperstrip, page.imagelength), page.imagewidth


def _stores(path: Path, tiff: tifffile.TiffFile, pages: list[tifffile.TiffPage]) -> list[_LevelStore]:
    lock, cache = threading.Lock(), _SegmentCache(CACHE_BYTES)
    return [
        _Mapped(path, page) if page.is_memmappable else _Segmented(tiff.filehandle, lock, cache, page)
        for page in pages
    ]


class _Mapped:
    """Uncompressed pixels in one piece: mapped, whatever the size of their strips."""

    def __init__(self, path: Path, page: tifffile.TiffPage) -> None:
        h, w, samples = page.imagelength, page.imagewidth, page.samplesperpixel
        self._planar = page.planarconfig == 2
        shape = (samples, h, w) if self._planar else (h, w, samples)
        self._pixels = np.memmap(path, np.uint8, "r", page.dataoffsets[0], shape)

    def read(self, level_x: int, level_y: int, level_w: int, level_h: int) -> NDArray[np.uint8]:
        """Return a box inside the level as (level_h, level_w, samples) uint8."""
        pixels = np.moveaxis(self._pixels, 0, 2) if self._planar else self._pixels
        return np.array(pixels[level_y : level_y + level_h, level_x : level_x + level_w])


class _SegmentCache:
    """The latest decoded segments, at most ``limit`` bytes of them; safe to use from several threads."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._bytes = 0
        self._segments: OrderedDict[tuple[int, int], NDArray[np.uint8]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: tuple[int, int]) -> NDArray[np.uint8] | None:
        with self._lock:
            if key in self._segments:
                self._segments.move_to_end(key)
            return self._segments.get(key)

    def put(self, key: tuple[int, int], segment: NDArray[np.uint8]) -> None:
        with self._lock:
            if key in self._segments:  # another thread was as fast
                return
            self._segments[key] = segment
            self._bytes += segment.nbytes
            while self._bytes > self._limit:
                self._bytes -= self._segments.popitem(last=False)[1].nbytes


class _Segmented:
    """Pixels in tiles or strips, of which only those under a box are read and decoded."""

    def __init__(
        self,
        file: tifffile.FileHandle,
        lock: threading.Lock,
        cache: _SegmentCache,
        page: tifffile.TiffPage,
    ) -> None:
        self._file, self._lock, self._cache, self._page = file, lock, cache, page
        self._decode = page.decode
        self._jpeg_tables = page.jpegtables
        self._segment_h, self._segment_w = _segment_shape(page)
        self._columns = -(-page.imagewidth // self._segment_w)
        self._rows = -(-page.imagelength // self._segment_h)
        self._planes = page.samplesperpixel if page.planarconfig == 2 else 1

    def read(self, level_x: int, level_y: int, level_w: int, level_h: int) -> NDArray[np.uint8]:
        """Return a box inside the level as (level_h, level_w, samples) uint8."""
        out = np.full((level_h, level_w, self._page.samplesperpixel), 255, np.uint8)
        for row in range(level_y // self._segment_h, -(-(level_y + level_h) // self._segment_h)):
            for column in range(level_x // self._segment_w, -(-(level_x + level_w) // self._segment_w)):
                for plane in range(self._planes):
                    self._paste(out, level_x, level_y, column, row, plane)
        return out

    def _paste(
        self, out: NDArray[np.uint8], level_x: int, level_y: int, column: int, row: int, plane: int
    ) -> None:
        """Copy what lies inside a box from one segment; a segment that the file leaves out stays white."""
        segment = self._segment((plane * self._rows + row) * self._columns + column)
        if segment is None:
            return
        x, y = column * self._segment_w - level_x, row * self._segment_h - level_y
        inside = segment[max(-y, 0) : out.shape[0] - y, max(-x, 0) : out.shape[1] - x]
        samples = slice(plane, plane + 1) if self._planes > 1 else slice(None)
        h, w = inside.shape[:2]
        out[max(y, 0) : max(y, 0) + h, max(x, 0) : max(x, 0) + w, samples] = inside

    def _segment(self, index: int) -> NDArray[np.uint8] | None:
        """Read and decode one tile or strip as (h, w, samples) uint8; None if the file leaves it out."""
        key = (self._page.offset, index)
        segment = self._cache.get(key)
        if segment is None and self._page.databytecounts[index]:
            segment = self._decoded(index)
            self._cache.put(key, segment)
        return segment

    def _decoded(self, index: int) -> NDArray[np.uint8]:
        try:
            with self._lock:
                self._file.seek(self._page.dataoffsets[index])
                data = self._file.read(self._page.databytecounts[index])
            segment, _, _ = self._decode(data, index, jpegtables=self._jpeg_tables)
        # Any exception: every codec has errors of its own.
        except Exception as error:
            raise SlideError(f"tile or strip {index} cannot be decoded: {_one_line(error)}") from error
        decoded: NDArray[np.uint8] = np.asarray(segment)[0]
        return decoded


def _rgb_converter(page: tifffile.TiffPage) -> Callable[[NDArray[np.uint8]], NDArray[np.uint8]]:
    """Return the function from a page's pixels (h, w, samples) to (h, w, 3) RGB."""
    if page.photometric == _WHITE_IS_ZERO:
        return lambda grey: np.repeat(255 - grey, 3, axis=2)
    if page.samplesperpixel == 1:
        return lambda grey: np.repeat(grey, 3, axis=2)
    if page.samplesperpixel == 4:
        premultiplied = _ASSOCIATED_ALPHA in page.extrasamples
        return lambda rgba: _on_white(rgba, premultiplied)
    return lambda rgb: rgb


def _on_white(rgba: NDArray[np.uint8], premultiplied: bool) -> NDArray[np.uint8]:
    """Composite (h, w, 4) over white."""
    alpha = rgba[..., 3:].astype(np.float32) / 255
    colour = rgba[..., :3] * (1 if premultiplied else alpha)
    return np.rint(np.minimum(colour + 255 * (1 - alpha), 255)).astype(np.uint8)


def _spacing_and_power(
    tiff: tifffile.TiffFile, page: tifffile.TiffPage, given: float | None
) -> tuple[Spacing, float | None]:
    """Decide on the size of pixels: OME metadata where it is there, else the resolution tags."""
    power = _ome_power(tiff)
    stated = _ome_mpp(tiff)
    if stated is None and power is None:
        return spacing_of_plain_tiff(given, _tagged_mpp(page)), None
    return spacing_of(given, stated, power), power


def _ome_element(tiff: tifffile.TiffFile, name: str) -> ElementTree.Element | None:
    """First OME element of a name, None if this is no OME-TIFF or has none."""
    metadata = tiff.ome_metadata
    return ElementTree.fromstring(metadata).find(f".//{{*}}{name}") if metadata else None


def _ome_mpp(tiff: tifffile.TiffFile) -> Mpp | None:
    """PhysicalSizeX/Y in µm; the schema's unit is µm where none is given."""
    pixels = _ome_element(tiff, "Pixels")
    if pixels is None:
        return None
    x, y = (_ome_length(pixels, f"PhysicalSize{axis}") for axis in "XY")
    return None if x is None or y is None else Mpp(x, y)


def _ome_length(pixels: ElementTree.Element, name: str) -> float | None:
    value, unit = pixels.get(name), pixels.get(f"{name}Unit", "µm")
    return float(value) * _MICROMETRES[unit] if value and unit in _MICROMETRES else None


def _ome_power(tiff: tifffile.TiffFile) -> float | None:
    objective = _ome_element(tiff, "Objective")
    power = None if objective is None else objective.get("NominalMagnification")
    try:
        value = float(power or "nan")
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _tagged_mpp(page: tifffile.TiffPage) -> Mpp | None:
    """µm per pixel from XResolution, YResolution and ResolutionUnit; None unless all three mean something."""
    micrometres = _RESOLUTION_UNITS.get(int(page.tags.valueof("ResolutionUnit", 1)))
    x, y = (_ratio(page.tags.valueof(f"{axis}Resolution")) for axis in "XY")
    return Mpp(micrometres / x, micrometres / y) if micrometres and x and y else None


def _ratio(value: tuple[int, int] | None) -> float:
    return value[0] / value[1] if value and value[1] else 0.0


def _no_slide(error: Exception) -> str:
    return f"neither OpenSlide nor tifffile can read it: {_one_line(error)}"


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
