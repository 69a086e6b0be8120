from __future__ import annotations

import struct
import subprocess
import sys
import tracemalloc
from typing import TYPE_CHECKING, Any

import pytest
import tifffile

from tests.helpers.slides import noise, pyramid, write_ome_tiff, write_svs, write_tiff
from wsi_saliency.errors import SlideError
from wsi_saliency.slides.opening import open_slide
from wsi_saliency.slides.readers import directories
from wsi_saliency.slides.readers.directories import check_directories, is_tiff

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

LEVELS = pyramid(noise(256, 256), (1, 2))
_FORMATS = {2: "B", 3: "H", 4: "I", 13: "I", 16: "Q"}


def tiff(
    path: Path, chain: Sequence[Sequence[tuple[int, int, int, int]]], back_to: int | None = None
) -> Path:
    """Write a TIFF of bare directories: entries (tag, type, count, value), and where the last one leads."""
    sizes = [2 + 12 * len(entries) + 4 for entries in chain]
    places = [8 + sum(sizes[:i]) for i in range(len(chain))]
    following = [*places[1:], 0 if back_to is None else places[back_to]]
    content = struct.pack("<2sHI", b"II", 42, places[0])
    for entries, after in zip(chain, following, strict=True):
        content += struct.pack("<H", len(entries))
        content += b"".join(struct.pack("<HHII", *entry) for entry in entries) + struct.pack("<I", after)
    path.write_bytes(content)
    return path


WIDTH = (256, 4, 1, 100)


@pytest.mark.parametrize("big", [False, True])
@pytest.mark.parametrize("order", ["<", ">"])
def test_whole_files_pass(tmp_path: Path, big: bool, order: Any) -> None:
    path = tmp_path / "s.tif"
    with tifffile.TiffWriter(path, bigtiff=big, byteorder=order) as writer:
        writer.write(LEVELS[0], tile=(64, 64), subifds=2, photometric="rgb")
        writer.write(LEVELS[1], tile=(64, 64), subfiletype=1, photometric="rgb")
        writer.write(LEVELS[1], tile=(64, 64), subfiletype=1, photometric="rgb")
        writer.write(LEVELS[1], photometric="rgb")
    assert is_tiff(path)
    check_directories(path)


@pytest.mark.parametrize("write", [write_svs, write_tiff, write_ome_tiff])
def test_slides_pass(tmp_path: Path, write: Callable[..., Path]) -> None:
    check_directories(write(tmp_path / "s.tif", LEVELS))


def test_other_files_are_no_tiff(tmp_path: Path) -> None:
    path = tmp_path / "s.tif"
    for content in (b"", b"II", b"II*", b"\x89PNG", b"II\0*"):
        path.write_bytes(content)
        assert not is_tiff(path)


@pytest.mark.parametrize("back_to", [0, 1, 2])
def test_a_loop_is_refused(tmp_path: Path, back_to: int) -> None:
    path = tiff(tmp_path / "s.tif", [[WIDTH]] * 3, back_to)
    with pytest.raises(SlideError, match="form a loop"):
        check_directories(path)


def test_a_slide_with_a_loop_is_refused_at_once_and_with_little_memory(tmp_path: Path) -> None:
    path = write_svs(tmp_path / "s.svs", LEVELS)
    with tifffile.TiffFile(path) as file:
        first, last = file.pages[0].aspage(), file.pages[1].aspage()
        place = last.offset + 2 + 12 * len(last.tags)
    content = bytearray(path.read_bytes())
    content[place : place + 4] = struct.pack("<I", first.offset)
    path.write_bytes(content)
    tracemalloc.start()
    try:
        with pytest.raises(SlideError, match=r"s\.svs: its directories form a loop"):
            open_slide(path)
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


def test_a_directory_that_is_its_own_subdirectory_is_met_once(tmp_path: Path) -> None:
    path = tiff(tmp_path / "s.tif", [[WIDTH, (330, 4, 1, 8)]])
    check_directories(path)


@pytest.mark.parametrize("place", [0, 7, 10**6, 2**32 - 1])
def test_a_directory_outside_the_file_is_refused(tmp_path: Path, place: int) -> None:
    path = tmp_path / "s.tif"
    path.write_bytes(struct.pack("<2sHI", b"II", 42, place) + bytes(100))
    with pytest.raises(SlideError, match=r"cut off or damaged.*copy the file again"):
        check_directories(path)
    tiff(path, [[WIDTH, (330, 4, 1, place)]])
    if place:
        with pytest.raises(SlideError, match="cut off or damaged"):
            check_directories(path)


@pytest.mark.parametrize("length", [4, 7, 9, 15, 22])
def test_a_file_that_ends_within_a_directory_is_refused(tmp_path: Path, length: int) -> None:
    path = tiff(tmp_path / "s.tif", [[WIDTH]])
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(SlideError, match="cut off or damaged"):
        check_directories(path)


def test_a_big_tiff_with_countless_entries_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "s.tif"
    path.write_bytes(struct.pack("<2sHHHQQ", b"II", 43, 8, 0, 16, 2**63) + bytes(100))
    with pytest.raises(SlideError, match="is not whole"):
        check_directories(path)


def test_more_pictures_than_any_slide_has_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(directories, "MAX_DIRECTORIES", 3)
    check_directories(tiff(tmp_path / "3.tif", [[WIDTH]] * 3))
    with pytest.raises(SlideError, match="more than 3 pictures"):
        check_directories(tiff(tmp_path / "4.tif", [[WIDTH]] * 4))


def test_values_larger_than_any_slides_are_refused(tmp_path: Path) -> None:
    path = tiff(tmp_path / "s.tif", [[WIDTH, (324, 4, 2**24 + 1, 8)]])
    with path.open("r+b") as file:
        file.truncate(2**28)  # a hole: takes no space on disk
    with pytest.raises(SlideError, match="far more than a slide has"):
        check_directories(path)


def test_ndpi_beyond_4_gib_is_followed(tmp_path: Path) -> None:
    """NDPI has 64-bit offsets to directories in what is a classic TIFF else."""
    path = tmp_path / "s.ndpi"
    first, second = 2**32 + 100, 2**32 + 1000
    entries = struct.pack("<HHHII", 1, 65420, 4, 1, 1)
    with path.open("wb") as file:  # most of it is a hole
        file.write(struct.pack("<2sHQ", b"II", 42, first))
        for place, following in ((first, second), (second, 0)):
            file.seek(place)
            file.write(entries + struct.pack("<Q", following))
        file.write(bytes(100))
    check_directories(path)
    with path.open("r+b") as file:
        file.seek(second + len(entries))
        file.write(struct.pack("<Q", first))
    with pytest.raises(SlideError, match="form a loop"):
        check_directories(path)


def test_values_outside_the_file_are_left_to_the_library(tmp_path: Path) -> None:
    check_directories(tiff(tmp_path / "s.tif", [[WIDTH, (324, 4, 2**24 + 1, 8), (330, 4, 2**30, 8)]]))
    check_directories(tiff(tmp_path / "s.tif", [[WIDTH, (330, 4, 3, 10**6), (65000, 999, 2**31, 0)]]))


def test_a_file_cut_while_it_is_read_is_an_error_and_no_crash(tmp_path: Path) -> None:
    """A mapped file would end the whole process with a bus error."""
    paths = [
        write_tiff(tmp_path / "raw.tif", [noise(2000, 900)], tile=None, compression=None),
        write_tiff(tmp_path / "strips.tif", [noise(2000, 900)], tile=None),
        write_svs(tmp_path / "tiles.svs", [noise(2000, 900)]),
        write_svs(tmp_path / "jpeg.svs", [noise(2000, 900)], quality=80),
    ]
    script = """
import os, sys
from wsi_saliency.errors import SlideError
from wsi_saliency.geometry import Region, Size
from wsi_saliency.slides.opening import open_slide
for path in sys.argv[1:]:
    with open_slide(path) as slide:
        slide.read(Region(0, 0, 50, 50), Size(50, 50))
        os.truncate(path, 40_000)
        try:
            slide.read(Region(0, 1500, 900, 500), Size(900, 500))
        except SlideError as error:
            print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", script, *map(str, paths)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == len(paths)
    for path, line in zip(paths, lines, strict=True):
        assert line.startswith(f"{path}: cannot read the region x=0, y=1500, w=900, h=500")
        assert line.endswith("the file ends before these pixels do: it has been cut off since it was opened")
