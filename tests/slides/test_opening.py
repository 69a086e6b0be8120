"""What is refused when a slide is opened, and in which words."""

from __future__ import annotations

import math
import os
import socket
import zipfile
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

import numpy as np
import openslide
import pytest
import tifffile
from PIL import Image

from tests.helpers.mutations import TIFF, mutated
from tests.helpers.slides import noise, pyramid, section, write_ome_tiff, write_svs, write_tiff
from wsi_saliency.errors import SettingsError, SlideError
from wsi_saliency.geometry import Mpp, Placement, Region, Size
from wsi_saliency.heatmap.ome_xml import ome_xml
from wsi_saliency.heatmap.pyramid import HeatmapInfo
from wsi_saliency.slides import opening
from wsi_saliency.slides.opening import is_slide_name, open_slide

if TYPE_CHECKING:
    from collections.abc import Callable

PICTURE = noise(512, 512)


def refused(path: Path | str, **options: Any) -> str:
    """Return the one line with which a file is refused, without its name."""
    with pytest.raises(SlideError) as raised:
        open_slide(path, **options).close()
    words = str(raised.value)
    assert words.startswith(f"{path}: ")
    assert words.isprintable()
    return words.removeprefix(f"{path}: ")


def changed(path: Path, old: bytes, new: bytes, at: int | None = None) -> Path:
    """Put other bytes into a file, at its first ``old``."""
    content = path.read_bytes()
    start = content.index(old) if at is None else at
    path.write_bytes(content[:start] + new + content[start + len(new) :])
    return path


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("JPEG", "a JPEG picture, not a whole-slide image"),
        ("PNG", "a PNG picture, not a whole-slide image"),
        ("GIF", "a GIF picture"),
        ("WEBP", "a WebP picture"),
        ("PDF", "a PDF"),
    ],
)
def test_pictures_are_named(tmp_path: Path, name: str, words: str) -> None:
    path = tmp_path / "s.svs"
    Image.new("RGB", (30, 30)).save(path, name)
    assert words in refused(path)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"x,y\n1,2\n\xc2\xb5,3\n", "a text file"),
        (b"\x1f\x8b\x08", "gzip archive; unpack it"),
        (b"ZISRAWFILE\0", "CZI file, which cannot be read; convert it to OME-TIFF"),
        (bytes(128) + b"DICM", "none that OpenSlide takes for a whole-slide image"),
        (b"version https://git-lfs.github.com/spec/v1\n", "a pointer of Git LFS; git lfs pull"),
        (b"<!DOCTYPE html><html>", "a web page, not a slide: the link"),
        (b"\x93NUMPY\1", "a NumPy array, not a slide"),
        (b"\2\0\0\0\0\0\0\0{}", "a safetensors file, the weights of a classifier, not a slide"),
        (bytes(5000), "starts with zeros .* the copy is incomplete"),
        (b"garb\x1b[31m\0\xff", "no slide that OpenSlide or tifffile can read"),
    ],
)
def test_other_files_are_named(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "s.svs"
    path.write_bytes(content)
    with pytest.raises(SlideError, match=words):
        open_slide(path)
    assert "header" not in refused(path).replace("slide's header", "")


def test_a_zip_is_to_be_unpacked(tmp_path: Path) -> None:
    path = tmp_path / "s.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a", "b")
    assert refused(path) == "it is a zip archive; unpack it and give the slide that is in it"


def test_a_mrxs_without_its_folder_says_so(tmp_path: Path) -> None:
    path = tmp_path / "case 1.mrxs"
    Image.new("RGB", (30, 30)).save(path, "JPEG")
    assert refused(path) == "the folder case 1 with Slidedat.ini must lie beside it; copy both"


def test_a_map_of_this_program_is_no_slide(tmp_path: Path) -> None:
    placement = Placement(x0=0, y0=0, fx=8, fy=8)
    info = HeatmapInfo("the slide.svs", Size(4096, 4096), Mpp(0.5, 0.5), placement, "a map")
    path = tmp_path / "saliency.ome.tif"
    description = ome_xml(info, Size(512, 512), Size(512, 512), "tiff")
    tifffile.imwrite(
        path, np.zeros((512, 512), np.float32), tile=(256, 256), description=description, metadata=None
    )
    assert refused(path) == "it is a map of this program, no slide; give the slide that it was made from"


def link_to_nothing(path: Path) -> None:
    path.symlink_to("gone.svs")


def link_to_itself(path: Path) -> None:
    path.symlink_to(path.name)


def pipe(path: Path) -> None:
    os.mkfifo(path)


def bound(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(path))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (link_to_nothing, "is a link to gone.svs, which is not there"),
        (link_to_itself, "no file can be read there (Too many levels of symbolic links)"),
        (pipe, "is a pipe, socket or device, not a file"),
        (bound, "is a pipe, socket or device, not a file"),
        (Path.touch, "the file is empty"),
        (Path.mkdir, "is a folder, not a slide"),
    ],
)
@pytest.mark.skipif(os.name == "nt", reason="Windows has neither pipes nor such sockets in folders")
def test_what_is_no_file_is_named_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Callable[[Path], None], words: str
) -> None:
    monkeypatch.chdir(tmp_path)  # a socket's path must be short
    make(Path("s.svs"))
    assert refused("s.svs") == words


@pytest.mark.skipif(not Path("/dev/zero").exists(), reason="there are no such devices")
def test_a_device_is_named_at_once() -> None:
    assert "device" in refused("/dev/zero")


def test_a_file_that_may_not_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_svs(tmp_path / "s.svs", [PICTURE])

    def forbidden(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", forbidden)
    assert refused(path) == "you may not read it; ask for permission, or copy it"


def test_a_disk_that_fails_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_svs(tmp_path / "s.svs", [PICTURE])

    def fails(_: Path) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(opening, "open_tiff", fails)
    assert refused(path) == "the file cannot be read (Input/output error)"


def test_what_openslide_cannot_open_keeps_its_reason(tmp_path: Path) -> None:
    path = write_svs(tmp_path / "s.svs", [PICTURE])
    with tifffile.TiffFile(path) as tiff:
        at = tiff.pages.first.tags["Compression"].valueoffset
    changed(path, b"", (50001).to_bytes(2, "little"), at)
    words = refused(path, mpp=0.5)
    assert words.startswith(
        "it calls itself a slide of the format aperio, but is damaged, an incomplete copy"
    )
    assert "(OpenSlide: Unsupported TIFF compression: 50001)" in words


def not_tiled(path: Path) -> Path:
    """Write what calls itself Aperio, and has strips, which Aperio never has at level 0."""
    with tifffile.TiffFile(write_svs(path, [PICTURE])) as tiff:
        description = tiff.pages.first.description
    return write_tiff(path, [PICTURE], tile=None, mpp=None, description=description)


def test_a_damaged_vendor_file_is_not_described_as_lacking_its_mpp(tmp_path: Path) -> None:
    words = refused(not_tiled(tmp_path / "s.svs"))
    assert words.startswith(
        "it calls itself a slide of the format aperio, but OpenSlide does not take it for"
    )
    assert "copy the file again, or give --mpp to read it as it is" in words


def test_a_vendor_file_read_by_the_fallback_says_so(tmp_path: Path) -> None:
    with open_slide(not_tiled(tmp_path / "s.svs"), mpp=0.5) as slide:
        assert slide.reader == "tifffile"
        assert "it calls itself a slide of the format aperio, but OpenSlide" in slide.warnings[0]
        assert (slide.read(Region(0, 0, 512, 512), Size(512, 512)) == PICTURE).all()


def test_a_vendor_file_that_openslide_takes_for_generic_says_so(tmp_path: Path) -> None:
    path = write_svs(tmp_path / "s.svs", [PICTURE])
    with open_slide(changed(path, b"Aperio", b"Bperio"), mpp=0.5) as slide:
        assert slide.reader == "openslide"
        assert "it calls itself a slide of the format aperio, but OpenSlide" in slide.warnings[0]


@pytest.mark.parametrize(
    ("how", "vendor"),
    [
        ({"description": "<scn xmlns='http://www.leica-microsystems.com/scn/2010/10/01'/>"}, "leica"),
        ({"description": "<DataObject ObjectType='DPUfsImport'/>"}, "philips"),
        ({"description": "<iScan Magnification='40'/>"}, "ventana"),
        ({"software": "MedScan"}, "trestle"),
        ({"extratags": [(271, 2, 10, "Hamamatsu", True)]}, "hamamatsu"),
        ({"extratags": [(700, 1, 10, b"<iScan a/>", True)]}, "ventana"),
    ],
)
def test_vendors_are_known_by_what_they_write(tmp_path: Path, how: dict[str, Any], vendor: str) -> None:
    path = write_tiff(tmp_path / "s.tif", [PICTURE], tile=None, mpp=None, **how)
    assert f"a slide of the format {vendor}, but OpenSlide" in refused(path)


@pytest.mark.parametrize("photometric", [0, 1, 3])
def test_colours_that_the_file_calls_grey_are_refused(tmp_path: Path, photometric: int) -> None:
    path = write_tiff(tmp_path / "s.tif", [PICTURE], quality=80)
    with tifffile.TiffFile(path) as tiff:
        at = tiff.pages.first.tags["PhotometricInterpretation"].valueoffset
    changed(path, b"", photometric.to_bytes(2, "little"), at)
    assert refused(path) == f"3 samples per pixel, photometric {photometric}; not RGB or grey"


def test_plain_and_converted_tiff_call_themselves_nothing(tmp_path: Path) -> None:
    with open_slide(write_tiff(tmp_path / "s.tif", [PICTURE], tile=None)) as slide:
        assert slide.warnings == ()
    path = write_ome_tiff(tmp_path / "s.ome.tif", [PICTURE], Description="Aperio |AppMag = 20|MPP = 0.5")
    with open_slide(path) as slide:
        assert (slide.reader, slide.warnings) == ("tifffile", ())


def test_a_codec_that_openslide_lacks_is_read_with_a_warning(tmp_path: Path) -> None:
    with open_slide(write_tiff(tmp_path / "s.tif", [PICTURE[:256, :256]], compression="webp")) as slide:
        assert slide.reader == "tifffile"
        assert slide.warnings == (
            "OpenSlide cannot open it (OpenSlide: Unsupported TIFF compression: 50001); "
            "it is read as a plain TIFF",
        )


def test_control_characters_of_a_library_stay_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_svs(tmp_path / "s.svs", [PICTURE])

    class Refusing(openslide.OpenSlide):
        def __init__(self, _: Path) -> None:
            raise openslide.OpenSlideError("\x1b[31mred\n\x07" * 99)

    monkeypatch.setattr(openslide, "OpenSlide", Refusing)
    words = refused(path)
    assert r"OpenSlide: \x1b[31mred \x07" in words
    assert len(words) < 450


@pytest.mark.parametrize("stated", [1e-300, 1e308, 250.0, 0.0005, -0.5])
@pytest.mark.parametrize("power", [None, 20])
def test_impossible_mpp_of_a_file_is_refused_whatever_the_objective(
    tmp_path: Path, stated: float, power: float | None
) -> None:
    path = write_svs(tmp_path / "s.svs", [PICTURE], mpp=stated, power=power)
    with pytest.raises(SlideError, match=r"s\.svs: .*not believed.*give it with --mpp") as raised:
        open_slide(path)
    assert ("250 nm are 0.25 µm: --mpp 0.25" in str(raised.value)) == (stated == 250)
    assert ("0.0005 mm are 0.5 µm: --mpp 0.5" in str(raised.value)) == (stated == 0.0005)
    with open_slide(path, mpp_required=False) as slide:
        assert slide.stated_mpp is None
    with open_slide(path, mpp=0.5) as slide:
        assert slide.mpp == Mpp(0.5, 0.5)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (500, "--mpp 500: µm per pixel lie within 0.001–100; 500 nm are 0.5 µm: --mpp 0.5"),
        (0.00025, "0.00025 mm are 0.25 µm: --mpp 0.25"),
        (1e-300, "--mpp 1e-300: µm per pixel lie within 0.001–100"),
        (1e308, "--mpp 1e+308: µm per pixel lie within 0.001–100"),
    ],
)
def test_mpp_option_in_another_unit_is_refused_with_what_it_may_mean(
    tmp_path: Path, given: float, words: str
) -> None:
    with pytest.raises(SettingsError) as raised:
        open_slide(write_svs(tmp_path / "s.svs", [PICTURE]), mpp=given)
    assert str(raised.value).endswith(words)


def test_mpp_of_a_thumbnail_is_taken_with_a_warning(tmp_path: Path) -> None:
    path = write_tiff(tmp_path / "s.tif", [PICTURE], mpp=None)
    with open_slide(path, mpp=78) as slide:
        assert slide.mpp == Mpp(78, 78)
        assert "outside 0.05–20" in slide.warnings[0]
    with open_slide(path, mpp=7.8) as slide:
        assert slide.warnings == ()


def test_missing_mpp_is_an_error_that_names_file_and_option(tmp_path: Path) -> None:
    path = write_svs(tmp_path / "s.svs", [PICTURE], mpp=None, power=None)
    with pytest.raises(SlideError, match=r"s\.svs: the file does not say .* give it with --mpp") as raised:
        open_slide(path)
    assert "\n" not in str(raised.value)
    with open_slide(path, mpp_required=False) as slide:
        assert slide.stated_mpp is None
        assert slide.mpp_source == "unknown"
        with pytest.raises(SlideError, match="--mpp"):
            _ = slide.mpp
    with open_slide(path, mpp=0.4) as slide:
        assert (slide.mpp, slide.mpp_source) == (Mpp(0.4, 0.4), "--mpp")


@pytest.mark.parametrize("mpp", [0.0, -1.0, math.nan, math.inf])
def test_mpp_option_must_be_positive(tmp_path: Path, mpp: float) -> None:
    with pytest.raises(SettingsError, match="--mpp"):
        open_slide(write_svs(tmp_path / "s.svs", [PICTURE]), mpp=mpp)


@pytest.mark.parametrize(
    ("content", "reason"),
    [(None, "no such file"), (b"", "is empty"), (b"slide\nof text\n", "it is a text file")],
)
def test_what_is_no_slide_is_named(tmp_path: Path, content: bytes | None, reason: str) -> None:
    path = tmp_path / "odd.svs"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(SlideError, match=rf"odd\.svs: .*{reason}") as raised:
        open_slide(path)
    assert "\n" not in str(raised.value)


def test_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(SlideError, match="is a folder"):
        open_slide(tmp_path)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a.svs", True),
        ("b/A.TIFF", True),
        ("x.ome.tif", True),
        ("m.mrxs", True),
        ("d.dcm", True),
        ("._a.svs", False),
        ("a.svs.txt", False),
        ("svs", False),
        ("Slidedat.ini", False),
    ],
)
def test_slide_names(name: str, expected: bool) -> None:
    assert is_slide_name(name) is expected


SMALL = pyramid(section(300, 200, (20, 20, 250, 150)), (1, 2))
WAYS = [
    (write, suffix, kind)
    for write, suffix in ((write_svs, ".svs"), (write_tiff, ".tif"), (write_ome_tiff, ".ome.tif"))
    for kind in TIFF
]


def what_is_wrong_with(path: Path) -> str | None:
    """Read all levels; returns what is said if one cannot be read."""
    try:
        with open_slide(path, mpp=0.5) as slide:
            for level in slide.levels:
                size = Size(min(level.size.w, 300), min(level.size.h, 200))
                slide.read(Region(0, 0, slide.size.w, slide.size.h), size)
    except SlideError as error:
        return str(error)
    return None


@pytest.mark.parametrize(("write", "suffix", "kind"), WAYS)
def test_a_damaged_slide_is_read_or_refused_by_name(
    tmp_path: Path, write: Callable[..., Path], suffix: str, kind: str
) -> None:
    """Whatever is wrong with it: nothing but our own errors, each of which names the file."""
    whole = write(tmp_path / f"whole{suffix}", SMALL).read_bytes()
    path = tmp_path / f"damaged{suffix}"
    for seed in range(3):
        path.write_bytes(mutated(whole, kind, Random(seed)))
        said = what_is_wrong_with(path)
        assert said is None or str(path) in said
