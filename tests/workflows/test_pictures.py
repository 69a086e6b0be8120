from __future__ import annotations

from pathlib import PurePath

import numpy as np
import pytest
from PIL import Image

from tests.helpers.pictures import write_pictures
from wsi_saliency.errors import SettingsError
from wsi_saliency.workflows.pictures import read_picture, read_pictures


def test_pictures_of_all_kinds_and_depths_of_folders(tmp_path):
    colours = {"tumour/a.png": 10, "normal/deep/b.tif": 20, "c.TIFF": 30, "tumour/d.PNG": 40}
    write_pictures(tmp_path, {**colours, "e.bmp": 50}, side=32)
    read = read_pictures(tmp_path, 32, 100)
    assert read.found == 4
    by_folder = sorted(zip(map(str, read.folders), read.patches[:, 0, 0, 0].tolist(), strict=True))
    assert by_folder == [(".", 30), ("normal/deep", 20), ("tumour", 10), ("tumour", 40)]
    assert (read.sizes[32, 32], read.left_out) == (4, ())


def test_of_a_larger_picture_the_middle_is_taken(tmp_path):
    pixels = np.arange(40 * 50 * 3, dtype=np.uint32).astype(np.uint8).reshape(40, 50, 3)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    picture = read_picture(tmp_path / "a.png", 32)
    assert np.array_equal(picture.patch, pixels[4:36, 9:41])
    assert picture.size == (50, 40)


def test_what_cannot_be_used_is_left_out_and_named(tmp_path):
    write_pictures(tmp_path, {"good.png": 1}, side=32)
    write_pictures(tmp_path, {"small.png": 1}, side=31)
    (tmp_path / "text.jpg").write_text("no picture\n")
    (tmp_path / "cut.png").write_bytes((tmp_path / "good.png").read_bytes()[:50])
    Image.fromarray(np.zeros((32, 32), np.uint16)).save(tmp_path / "deep.png")
    Image.fromarray(np.zeros((8, 9000), np.uint8)).save(tmp_path / "wide.png")
    read = read_pictures(tmp_path, 32, 100)
    assert (len(read.patches), read.found) == (1, 6)
    reasons = dict(text.removesuffix(")").split(" (", 1) for text in read.left_out)
    assert reasons["small.png"] == "31 × 31 px is smaller than a patch of 32 px"
    assert reasons["text.jpg"] == "not a picture, or damaged"
    assert reasons["deep.png"] == "more than eight bits a colour"
    assert reasons["wide.png"] == "9000 × 8 px is a slide rather than a patch: see --slide"
    assert set(reasons) == {"small.png", "text.jpg", "cut.png", "deep.png", "wide.png"}


@pytest.mark.parametrize("suffix", ["png", "tif", "jpg"])
@pytest.mark.parametrize(("dpi", "mpp"), [(50_800, 0.5), (72, None), (None, None)])
def test_the_resolution_of_a_microscope_is_read_that_of_a_printer_is_not(tmp_path, suffix, dpi, mpp):
    path = tmp_path / f"a.{suffix}"
    Image.new("RGB", (16, 16)).save(path, **({} if dpi is None else {"dpi": (dpi, dpi)}))
    assert read_picture(path, 16).mpp == (None if mpp is None else pytest.approx(mpp, rel=1e-3))


def test_so_many_are_taken_by_chance(tmp_path):
    write_pictures(tmp_path, {f"{i}.png": i for i in range(30)}, side=8)
    first, again, other = (read_pictures(tmp_path, 8, 10, seed) for seed in (0, 0, 1))
    assert (first.found, first.patches.shape) == (30, (10, 8, 8, 3))
    assert np.array_equal(first.patches, again.patches)
    assert len(set(first.patches[:, 0, 0, 0].tolist())) == 10
    assert not np.array_equal(first.patches, other.patches)
    assert first.folders == [PurePath()] * 10


def test_a_folder_without_pictures(tmp_path):
    with pytest.raises(SettingsError, match="none is no folder"):
        read_pictures(tmp_path / "none", 8, 10)
    with pytest.raises(SettingsError, match=r"has no picture that can be used among its files \(\.png"):
        read_pictures(tmp_path, 8, 10)
    write_pictures(tmp_path, {"a.png": 1}, side=8)
    with pytest.raises(SettingsError, match=r"can be used; a\.png .8 × 8 px is smaller"):
        read_pictures(tmp_path, 9, 10)
