from __future__ import annotations

import io

import numpy as np

from tests.helpers.slides import section, write_svs
from wsi_saliency.geometry import Region, Size
from wsi_saliency.heatmap.overview import thumbnail_size
from wsi_saliency.slides import whole
from wsi_saliency.slides.opening import open_slide
from wsi_saliency.slides.tissue import tissue_mask
from wsi_saliency.workflows import first_look
from wsi_saliency.workflows.first_look import look_at
from wsi_saliency.workflows.progress import bar

PICTURE = section(1024, 768, (200, 150, 500, 400))


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_tissue_and_thumbnail_are_those_that_are_read_alone(tmp_path):
    with open_slide(write_svs(tmp_path / "s.svs", [PICTURE])) as slide:
        seen = look_at(slide, 2)
        np.testing.assert_array_equal(seen.tissue.mask, tissue_mask(slide).mask)
        expected = slide.read(Region(0, 0, 1024, 768), thumbnail_size(slide.size))
    assert seen.tissue.mask.any()
    np.testing.assert_array_equal(seen.thumbnail, expected)


def test_a_large_slide_is_read_once_and_shows_how_far_it_is(tmp_path, monkeypatch):
    monkeypatch.setattr(whole, "SMALL", 1000)
    monkeypatch.setattr(first_look, "thumbnail_size", lambda size: Size(64, 48))
    monkeypatch.setattr("sys.stderr", errors := Terminal())
    with open_slide(write_svs(tmp_path / "s.svs", [PICTURE], quality=90)) as slide:
        tiles, decoded = slide.decoded(0), []
        read = type(tiles).read
        monkeypatch.setattr(
            type(tiles), "read", lambda tiles, number: decoded.append(number) or read(tiles, number)
        )
        look_at(slide, 2, lambda pieces: bar("s.svs: tissue", pieces, "piece"))
    assert sorted(decoded) == list(range(12))
    assert "s.svs: tissue:" in errors.getvalue()
