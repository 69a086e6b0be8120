from __future__ import annotations

import pytest

from tests.helpers.commands import UNREADABLE, left, only_line, real
from tests.helpers.paths import REAL_SLIDES


def test_it_prints_what_it_describes(call, slide):
    result = call("inspect", slide, "--model", "demo")
    assert result.exit_code == 0
    assert "size          288 × 192 px\n" in result.stdout
    assert "(224 px at 0.5 µm/px, overlap 0.5; classifier demo)" in result.stdout


def test_options_reach_the_grid(call, slide):
    result = call("inspect", slide, "--mpp", "0.25", "--patch", "64", "--model-mpp", "0.5", "--overlap", "0")
    assert "mpp           0.25 × 0.25 µm/px (--mpp)\n" in result.stdout
    assert " of 6 (64 px at 0.5 µm/px, overlap 0; classifier camelyon16)" in result.stdout
    full = call("inspect", slide, "--tissue-threshold", "1")
    assert "patches       1 of 15 " in full.stdout
    all_of_them = call("inspect", slide, "--tissue-threshold", "0")
    assert "patches       15 of 15 " in all_of_them.stdout


@pytest.mark.parametrize("name", UNREADABLE)
@pytest.mark.usefixtures("spots")
def test_a_slide_that_cannot_be_read_is_one_line_that_names_it(call, tmp_path, name):
    make, reason = UNREADABLE[name]
    make(tmp_path / name)
    line = only_line(call("inspect", tmp_path / name))
    assert name in line
    assert reason in line
    assert left(tmp_path) == []


@real
@pytest.mark.usefixtures("spots")
def test_a_real_slide_without_mpp_is_not_enlarged(call):
    result = call("inspect", REAL_SLIDES / "tumor_001aaf.tif", "--mpp", "7.8", "--model", "spots")
    assert "µm/px is too coarse for a classifier of 0.5 µm/px" in result.stderr
    assert "(64 px at 7.8 µm/px" in result.stdout


@real
@pytest.mark.usefixtures("spots")
def test_a_real_slide_that_breaks_when_it_is_read(call, tmp_path):
    line = only_line(call("inspect", REAL_SLIDES / "unreadable.svs"))
    assert "unreadable.svs: cannot read the region x=0, y=0, " in line
    assert left(tmp_path) == []
