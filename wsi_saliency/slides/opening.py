"""From a path to the reader that fits: what the file is, who wrote it, and whether it is whole."""

from __future__ import annotations

import stat
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, NamedTuple

from wsi_saliency.errors import SlideError
from wsi_saliency.filetypes import read_head, type_of
from wsi_saliency.slides.cache import SlideCache
from wsi_saliency.slides.readers.directories import check_directories, is_tiff
from wsi_saliency.slides.readers.openslide import OpenSlideReader, OpenSlideRefusal, detect_format
from wsi_saliency.slides.readers.stored import table_faults
from wsi_saliency.slides.readers.tiff import TiffReader
from wsi_saliency.slides.readers.tiff_pages import level_pages, open_tiff, pages_of
from wsi_saliency.slides.slide import Slide, Source
from wsi_saliency.slides.spacing import check_given
from wsi_saliency.urls import located, shown

if TYPE_CHECKING:
    from collections.abc import Mapping

    import tifffile

    from wsi_saliency.filetypes import Sort
    from wsi_saliency.settings import CacheSettings
    from wsi_saliency.slides.whole import Watch
    from wsi_saliency.urls import Location

SUFFIXES = frozenset(
    {".svs", ".tif", ".tiff", ".ndpi", ".mrxs", ".scn", ".bif", ".vms", ".vmu", ".svslide", ".dcm", ".dicom"}
)

_TILE_WIDTH = 322
_ONE_SAMPLE = (0, 1, 3)  # photometric interpretations: grey of both kinds, palette
_PLAIN = "generic-tiff"
_AS_PLAIN = "it is read as a plain TIFF"

_CONVERT = ", which cannot be read; convert it to OME-TIFF, for instance with bfconvert or QuPath"
_ADVICE: Mapping[Sort, str] = {
    "picture": ", not a whole-slide image; give the slide itself, or save it as a tiled TIFF",
    "packed": "; unpack it and give the slide that is in it",
    "pointer": "; git lfs pull gets the slide itself",
    "page": ", not a slide: the link led to a page and not to the file",
    "microscopy": _CONVERT,
    "hdf5": _CONVERT,
    "dicom": ", but none that OpenSlide takes for a whole-slide image",
}


def open_slide(
    path: Location | str,
    mpp: float | None = None,
    *,
    mpp_required: bool = True,
    cache: CacheSettings | None = None,
    watch: Watch | None = None,
) -> Slide:
    """Open a slide with OpenSlide, or with tifffile where OpenSlide refuses or would misread.

    Parameters
    ----------
    path
        The file, or the URL of one: that is brought into the cache, unless it is there, and read there.
    mpp
        µm per level-0 pixel, in place of what the file says.
    mpp_required
        Whether a slide without mpp is an error; if not, its `Slide.stated_mpp` is None.
    cache
        Settings that name the cache of slides from URLs; the user's if left out.
    watch
        Shows how many bytes have come from a URL.

    Raises
    ------
    SlideError
        If there is no such file, if it is no slide or damaged, if nobody says how large its pixels are, or
        if what is at a URL cannot be brought here.
    SettingsError
        If ``mpp`` is not a possible number of µm per pixel.
    """
    place = located(path)
    if mpp is not None:
        check_given(mpp)
    slide = _opened(_source(place, cache, watch), mpp)
    try:
        if mpp_required:
            _ = slide.mpp
    except SlideError:
        slide.close()
        raise
    return slide


def _source(place: Location, cache: CacheSettings | None, watch: Watch | None) -> Source:
    if isinstance(place, Path):
        check_file(place)
        return Source(place, place)
    return SlideCache.of(cache).source(place, watch)


def is_slide_name(path: PurePath | str) -> bool:
    """Whether a file found in a folder has a slide's suffix, and is not hidden."""
    path = PurePath(path)
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".")


def check_file(path: Path) -> None:
    """Check that a path leads to a file that can be read; a pipe or device might never end.

    Raises
    ------
    SlideError
        If there is no such file, if it is none, if it is empty or may not be read.
    """
    try:
        mode, size = path.stat().st_mode, path.stat().st_size
        if stat.S_ISREG(mode):
            path.open("rb").close()
    except FileNotFoundError:
        words = f"is a link to {path.readlink()}, which is not there" if path.is_symlink() else "no such file"
        raise SlideError(f"{path}: {words}") from None
    except PermissionError:
        raise SlideError(f"{path}: you may not read it; ask for permission, or copy it") from None
    except (OSError, ValueError) as error:  # a link to itself, a name too long, a null in it
        raise SlideError(f"{path}: no file can be read there ({getattr(error, 'strerror', error)})") from None
    if stat.S_ISDIR(mode):
        raise SlideError(f"{path}: is a folder, not a slide")
    if not stat.S_ISREG(mode):
        raise SlideError(f"{path}: is a pipe, socket or device, not a file")
    if size == 0:
        raise SlideError(f"{path}: the file is empty")


def _opened(source: Source, mpp: float | None) -> Slide:
    """Open with the reader that fits: OpenSlide, or tifffile where OpenSlide refuses or would misread.

    Raises
    ------
    SlideError
        If the file is no slide, or damaged.
    """
    try:
        return _chosen(source, mpp)
    except BaseException as error:
        source.release()
        if isinstance(error, SlideError):
            raise SlideError(f"{shown(source.place)}: {error}") from error
        if isinstance(error, OSError):  # a disk or network that fails
            reason = error.strerror or error
            raise SlideError(f"{shown(source.place)}: the file cannot be read ({reason})") from error
        raise


def _chosen(source: Source, mpp: float | None) -> Slide:
    path = source.file
    tiff = is_tiff(path)
    if tiff:
        check_directories(path)
    file_format = detect_format(path)
    if tiff and file_format != "hamamatsu":  # whose 64-bit offsets only OpenSlide follows
        _check_tiles(path)
    if file_format is None and not tiff:
        raise SlideError(_what_else(path))
    if file_format is None or file_format == _PLAIN:
        return _plain_tiff(source, mpp, file_format)
    try:
        return Slide(source, OpenSlideReader(path, mpp))
    except OpenSlideRefusal as error:  # no other reader knows such a file as well
        raise SlideError(
            f"it calls itself a slide of the format {file_format}, but is damaged, an incomplete copy, or of "
            f"a kind that OpenSlide does not know ({error})"
        ) from error


def _check_tiles(path: Path) -> None:
    """Refuse tables of tiles that cannot be right: some make OpenSlide end the whole process."""
    try:
        with open_tiff(path) as tiff:
            tiled = [page for page in pages_of(tiff.pages) if _TILE_WIDTH in page.tags]
            faults = [fault for page in tiled for fault in table_faults(page, tiff.filehandle.size)]
    except (SlideError, OSError):
        raise
    except Exception:  # whoever opens the slide says what is wrong
        return
    for fault in faults:
        raise SlideError(fault)


def _plain_tiff(source: Source, mpp: float | None, file_format: str | None) -> Slide:
    """Open a TIFF that OpenSlide takes as generic, or not at all."""
    path = source.file
    looks = _look(path)
    why = None
    if looks.vendor:
        why = (
            f"it calls itself a slide of the format {looks.vendor}, but OpenSlide does not take it for one: "
            "probably it is damaged, or an incomplete copy"
        )
    if file_format is not None and not looks.misread:
        try:
            return Slide(source, OpenSlideReader(path, mpp), why and f"{why}; {_AS_PLAIN}")
        except OpenSlideRefusal as error:  # for instance a codec that libtiff lacks
            why = why or f"OpenSlide cannot open it ({error})"
    try:
        return Slide(source, TiffReader(path, mpp), why and f"{why}; {_AS_PLAIN}")
    except SlideError as error:
        raise SlideError(f"{why}; {error}" if why else str(error)) from error


class _Looks(NamedTuple):
    """What a TIFF says about itself: whose format it is, and whether OpenSlide would misread it."""

    vendor: str | None = None
    misread: bool = False


def _look(path: Path) -> _Looks:
    """Look at a TIFF that OpenSlide takes as generic, or not at all."""
    try:
        with open_tiff(path) as tiff:
            return _Looks(None if tiff.is_ome else _vendor(tiff.pages.first), _misread(tiff))
    except Exception:  # see TiffReader: whoever opens it says what is wrong
        return _Looks()


def _misread(tiff: tifffile.TiffFile) -> bool:
    """Whether OpenSlide's generic reader would misread a TIFF.

    It sees neither the SubIFD pyramid nor the pixel size of OME-TIFF, shows the first channel of a stack as
    if it were the picture, cuts 16-bit pixels to their upper byte without a word, and makes colours of what
    the file calls grey.
    """
    pages = level_pages(tiff)
    deep = any(page.bitspersample != 8 for page in pages)
    grey = any(page.photometric in _ONE_SAMPLE and page.samplesperpixel > 2 for page in pages)
    return bool(tiff.is_ome) or deep or grey


def _vendor(page: tifffile.TiffPage) -> str | None:
    """Vendor that a TIFF's first directory names, in OpenSlide's spelling."""
    description, software = page.description, page.software
    xmp = page.tags.valueof(700, b"")
    signs = {
        "aperio": description.startswith("Aperio") or "|AppMag = " in description,
        "leica": "leica-microsystems.com/scn" in description,
        "philips": "DPUfsImport" in description,
        "trestle": software.startswith("MedScan"),
        "hamamatsu": 65420 in page.tags or str(page.tags.valueof(271, "")).startswith("Hamamatsu"),
        "ventana": "<iScan" in description or (isinstance(xmp, bytes) and b"<iScan" in xmp),
    }
    return next((vendor for vendor, says in signs.items() if says), None)


def _what_else(path: Path) -> str:
    """Say what a file is that is no TIFF, and that OpenSlide does not know."""
    if path.suffix.lower() == ".mrxs":
        return f"the folder {path.stem} with Slidedat.ini must lie beside it; copy both"
    head = read_head(path)
    if found := type_of(head):
        return f"it is {found.name}{_ADVICE.get(found.sort, ', not a slide')}"
    if not any(head):
        return "it starts with zeros instead of a slide's header: the copy is incomplete; copy it again"
    return (
        "no slide that OpenSlide or tifffile can read; it is of another format, damaged or an incomplete copy"
    )
