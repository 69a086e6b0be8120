"""What a TIFF says about itself: its levels, whether they can be shown, how large its pixels are."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import tifffile

from wsi_saliency.errors import SlideError
from wsi_saliency.geometry import Mpp
from wsi_saliency.messages import one_line
from wsi_saliency.slides.readers.directories import MAX_DIRECTORIES, check_directories
from wsi_saliency.slides.readers.stored import JPEG, table_faults
from wsi_saliency.slides.spacing import Spacing, spacing_of, spacing_of_plain_tiff
from wsi_saliency.untrusted_xml import XmlError, parse_xml

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from xml.etree import ElementTree

_MICROMETRES = {"m": 1e6, "cm": 1e4, "mm": 1e3, "µm": 1.0, "μm": 1.0, "um": 1.0, "nm": 1e-3, "in": 25400.0}
_RESOLUTION_UNITS = {2: 25400.0, 3: 10000.0}  # TIFF 6.0: inch, centimetre
WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB, _YCBCR = 0, 1, 2, 6
_MAP_NAMESPACE = "wsi-saliency/placement"  # stands in every map of this program


def open_tiff(path: Path) -> tifffile.TiffFile:
    """Open a TIFF with tifffile, after a look at its directories.

    Raises
    ------
    SlideError
        If tifffile would get lost in the file; with nothing but the reason.
    """
    check_directories(path)
    return tifffile.TiffFile(path, is_ndpi=False)  # NDPI is OpenSlide's; tifffile would read it at once


def level_pages(tiff: tifffile.TiffFile) -> list[tifffile.TiffPage]:
    """Find the pyramid: the largest page and those which show the same in smaller, finest first."""
    tops = pages_of(tiff.pages)
    if not tops:
        raise SlideError("the file is truncated: there is no picture in it")
    base = max(tops, key=_area)
    if _area(base) == 0:
        raise SlideError("the picture has no pixels; the file is damaged")
    subifds = pages_of(base.pages or ())
    smaller = [page for page in subifds or tops if _is_level_of(base, page, subifd=bool(subifds))]
    return [base, *sorted(smaller, key=_area, reverse=True)]


def pages_of(pages: tifffile.TiffPages | tuple[()]) -> list[tifffile.TiffPage]:
    """Return the pages of a chain, at most as many as have been looked at."""
    found: list[tifffile.TiffPage] = []
    while len(found) < MAX_DIRECTORIES:
        try:
            found.append(pages[len(found)].aspage())
        except IndexError:
            break
    return found


def _area(page: tifffile.TiffPage) -> int:
    return int(page.imagewidth * page.imagelength)


def _is_level_of(base: tifffile.TiffPage, page: tifffile.TiffPage, *, subifd: bool) -> bool:
    """Whether a page is a smaller version of another: same kind of pixels, same shape up to rounding."""
    shrunk_x, shrunk_y = page.imagewidth / base.imagewidth, page.imagelength / base.imagelength
    same_shape = abs(shrunk_x - shrunk_y) <= 1 / base.imagewidth + 1 / base.imagelength
    same_pixels = (page.samplesperpixel, page.bitspersample) == (base.samplesperpixel, base.bitspersample)
    # A thumbnail of a slide with strips says that it is reduced; a label of a similar shape does not.
    meant = subifd or page.is_reduced or (page.is_tiled and base.is_tiled)
    return meant and same_shape and same_pixels and max(shrunk_x, shrunk_y) < 1


def check_levels(tiff: tifffile.TiffFile, pages: list[tifffile.TiffPage]) -> None:
    """Raise `SlideError` with the reason if a slide's pixels cannot be shown as 8-bit RGB."""
    refusals = (refusal for page in pages for refusal in _refusals(page, tiff.filehandle.size))
    for refusal in (*_ome_refusals(tiff, pages[0]), *refusals):
        raise SlideError(refusal)


def _refusals(page: tifffile.TiffPage, file_size: int) -> Iterator[str]:
    if page.bitspersample != 8 or page.dtype != np.uint8:
        kind = "unknown" if page.dtype is None else page.dtype
        yield f"pixels are {page.bitspersample}-bit ({kind}); only 8-bit RGB or grey TIFF can be read"
    allowed = {WHITE_IS_ZERO: (1,), _BLACK_IS_ZERO: (1,), _RGB: (3, 4), _YCBCR: (3,)}
    if page.samplesperpixel not in allowed.get(page.photometric, ()):
        yield f"{page.samplesperpixel} samples per pixel, photometric {page.photometric}; not RGB or grey"
    if page.photometric == _YCBCR and page.compression not in JPEG:
        yield "YCbCr pixels outside JPEG; re-save the slide as RGB"
    if page.planarconfig not in (1, 2):
        yield "it does not say how its colours are stored; the file is damaged"
    if page.imagedepth != 1:
        yield f"a stack of {page.imagedepth} planes; only flat pictures can be read"
    yield from table_faults(page, file_size)


def _ome_refusals(tiff: tifffile.TiffFile, page: tifffile.TiffPage) -> Iterator[str]:
    if _MAP_NAMESPACE in (tiff.ome_metadata or ""):
        yield "it is a map of this program, no slide; give the slide that it was made from"
    pixels = _ome_element(tiff, "Pixels")
    if pixels is not None:
        values = math.prod(_whole(pixels.get(name)) for name in ("SizeC", "SizeZ", "SizeT"))
        if values > page.samplesperpixel:
            yield f"{values} channels or planes in the OME-TIFF; only one RGB or grey picture can be read"


def _whole(text: str | None) -> int:
    return int(text) if text and text.isdecimal() and len(text) < 10 else 1


def spacing_and_power(
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
    if not metadata:
        return None
    try:
        return parse_xml(metadata).find(f".//{{*}}{name}")
    except XmlError as error:
        raise SlideError(f"its OME-XML {one_line(error)}") from error


def _ome_mpp(tiff: tifffile.TiffFile) -> Mpp | None:
    """PhysicalSizeX/Y in µm; the schema's unit is µm where none is given."""
    pixels = _ome_element(tiff, "Pixels")
    if pixels is None:
        return None
    x, y = (_ome_length(pixels, f"PhysicalSize{axis}") for axis in "XY")
    return None if x is None or y is None else Mpp(x, y)


def _ome_length(pixels: ElementTree.Element, name: str) -> float | None:
    unit = _MICROMETRES.get(pixels.get(f"{name}Unit", "µm"))
    value = _number(pixels.get(name))
    return None if value is None or unit is None else value * unit


def _ome_power(tiff: tifffile.TiffFile) -> float | None:
    objective = _ome_element(tiff, "Objective")
    return None if objective is None else _number(objective.get("NominalMagnification"))


def _number(text: str | None) -> float | None:
    try:
        value = float(text or "nan")
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _tagged_mpp(page: tifffile.TiffPage) -> Mpp | None:
    """µm per pixel from XResolution, YResolution and ResolutionUnit; None unless all three mean something."""
    micrometres = _RESOLUTION_UNITS.get(page.tags.valueof("ResolutionUnit", 1))
    x, y = (_ratio(page.tags.valueof(f"{axis}Resolution")) for axis in "XY")
    return Mpp(micrometres / x, micrometres / y) if micrometres and x and y else None


def _ratio(value: object) -> float:
    match value:
        case (int(above), int(below)) if below:
            return above / below
    return 0.0
