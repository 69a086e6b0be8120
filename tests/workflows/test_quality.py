"""``--qc`` through a whole run: what is planted is in the table, in the record and in the report."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy import ndimage

from tests.helpers.runs import SETTINGS, explained, rows_of
from tests.helpers.slides import section, write_svs
from wsi_saliency.heatmap.result import QUALITY_COLUMNS
from wsi_saliency.slides.quality import PEN_SHARE, SHARPNESS

W, H = 1024, 768
COUNTS = ("pen", "fold", "blur")


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """A slide with pen to the left and blur to the right, without and with ``--qc``."""
    folder = tmp_path_factory.mktemp("quality")
    picture = section(W, H, (0, 0, W, H))
    picture[100:700, 0:256] = (40, 70, 170)
    picture[:, 640:] = ndimage.gaussian_filter(picture[:, 640:], (4, 4, 0))
    path = write_svs(folder / "s.svs", [picture])
    plain = explained(path, folder / "plain", SETTINGS)
    return plain, explained(path, folder / "qc", replace(SETTINGS, qc=True))


def test_nothing_is_noted_unless_asked(results):
    plain, _ = results
    assert not set(QUALITY_COLUMNS) & set(rows_of(plain.folder)[0])
    assert plain.record["quality"] is None
    assert "may be spoilt" not in (plain.folder / "report.html").read_text()


def test_maps_and_other_columns_are_the_same(results):
    plain, checked = results
    rows = [{k: v for k, v in row.items() if k not in QUALITY_COLUMNS} for row in rows_of(checked.folder)]
    assert rows == rows_of(plain.folder)
    np.testing.assert_array_equal(
        checked.heatmap(checked.maps[0].spec).read(0), plain.heatmap(plain.maps[0].spec).read(0)
    )


def test_what_is_planted_is_counted(results):
    _, checked = results
    rows = rows_of(checked.folder)
    penned = [row for row in rows if float(row["qc_pen"]) >= PEN_SHARE]
    blurred = [row for row in rows if float(row["qc_sharpness"]) < SHARPNESS]
    assert penned
    assert all(int(row["x"]) < 300 for row in penned)
    right = [row for row in rows if int(row["x"]) >= 640]
    assert right
    assert all(row in blurred for row in right)
    assert not any(320 < int(row["x"]) < 500 for row in blurred)
    found = checked.record["quality"]
    assert [found[what] for what in COUNTS] == [len(penned), found["fold"], len(blurred)]
    assert f"{len(penned)} with pen" in (checked.folder / "report.html").read_text()
