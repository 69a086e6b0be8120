"""The table and the page of an output folder; the page is run in a headless browser where there is one."""

from __future__ import annotations

import csv
import re
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from tests.helpers.commands import PICTURE
from tests.helpers.pages import browser
from tests.helpers.paths import ROOT
from tests.helpers.runs import SETTINGS, explained
from tests.helpers.slides import write_svs
from wsi_saliency.errors import OutputError
from wsi_saliency.report.slides import (
    COLUMNS,
    COMPLETE,
    FAILED,
    SlideRow,
    read_summary,
    write_index,
    write_summary,
)

HOSTILE = "sub/javascript:alert(1)'\"<b>#?%&"
FAILURE = SlideRow("in/b.svs", FAILED, "b", "in/b.svs: <bad>, tile", error_log="b.error.log", when="2026")
DONE = SlideRow(f"in/{HOSTILE}.svs", COMPLETE, HOSTILE, "", "9", "1.5", "tumour", "2", "0.75", "m n", "3.5")


def test_the_row_of_a_result_is_what_its_record_says(tmp_path):
    slide = write_svs(tmp_path / "a.svs", [PICTURE])
    result = explained(slide, tmp_path / "out" / "a", replace(SETTINGS, methods=("none", "centred-hook")))
    row, record = SlideRow.of(slide, Path("sub/a"), result), result.record
    assert (row.slide, row.status, row.folder, row.reason) == (str(slide), COMPLETE, "sub/a", "")
    assert int(row.patches) == record["patches"]["tissue"]
    assert float(row.tissue_mm2) == record["slide"]["tissue_mm2"]
    target = record["targets"][0]
    assert (row.target, int(row.positive)) == (target["name"], target["positive"])
    assert float(row.highest_probability) == pytest.approx(target["highest_probability"], rel=1e-5)
    assert row.maps == "stage3.none.gradient stage3.centred-hook.gradient"
    assert row.when >= record["started"]
    older = replace(result, record=record | {"schema": 0})
    assert SlideRow.of(slide, Path("a"), older) == SlideRow(str(slide), COMPLETE, "a")


def test_rows_are_read_as_they_were_written(tmp_path):
    assert read_summary(tmp_path) == []
    write_summary(tmp_path, [FAILURE, DONE])
    assert read_summary(tmp_path) == [FAILURE, DONE]
    with (tmp_path / "summary.csv").open(newline="") as file:
        assert tuple(next(csv.reader(file))) == COLUMNS


def test_each_column_is_explained():
    text = (ROOT / "docs" / "folders.md").read_text()
    assert [name for name in COLUMNS if f"`{name}`" not in text] == []


@pytest.mark.parametrize("name", ["summary.csv", "index.html"])
def test_a_file_of_somebody_else_stays(tmp_path, name):
    (tmp_path / name).write_text("mine\n1\n")
    with pytest.raises(OutputError, match=rf"{name}: is not of this .*and stays as it is"):
        read_summary(tmp_path) if name == "summary.csv" else write_index(tmp_path, [DONE])
    assert (tmp_path / name).read_text() == "mine\n1\n"


def test_a_damaged_table_is_one_line(tmp_path):
    (tmp_path / "summary.csv").write_bytes(b"\xff\x00")
    with pytest.raises(OutputError, match=r"summary\.csv: "):
        read_summary(tmp_path)


def test_the_page_lists_failures_first_and_links_files_relatively(tmp_path):
    write_index(tmp_path, [DONE, FAILURE])
    write_index(tmp_path, [DONE, FAILURE])  # over its own
    text = (tmp_path / "index.html").read_text()
    assert "2 slides, 1 failed" in text
    assert text.index("in/b.svs: &lt;bad&gt;, tile") < text.index("tumour")
    addresses = set(re.findall(r'(?:href|src)="([^#"][^"]*)"', text))
    below = "./sub/javascript%3Aalert%281%29%27%22%3Cb%3E%23%3F%25%26"
    files = [f"{below}/{name}" for name in ("", "report.html", "overview.m.png", "tiles.csv", "run.json")]
    assert addresses == {*files, "./b.error.log"}
    assert "<b>" not in text


def test_of_several_maps_the_first_is_shown(tmp_path):
    write_index(tmp_path, [replace(DONE, maps="layer2.none.deeplift layer3.none.deeplift")])
    assert '/overview.layer2.none.deeplift.png"' in (tmp_path / "index.html").read_text()


def test_a_browser_shows_the_pictures_beside_the_page_and_nothing_else(tmp_path):
    (tmp_path / HOSTILE).mkdir(parents=True)
    Image.new("RGB", (30, 20)).save(tmp_path / HOSTILE / "overview.m.png")
    write_index(tmp_path, [DONE, FAILURE])
    act = """<script>addEventListener("load", () => {
      const widths = [...document.images].map((image) => image.naturalWidth);
      document.title = widths.join() + "|" + location.protocol;
    });</script></body>"""
    page = tmp_path / "index.html"
    page.write_text(page.read_text().replace("</body>", act))
    done = subprocess.run(
        [*browser(tmp_path / "profile"), "--dump-dom", page.as_uri()],
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert "<title>30|file:</title>" in done.stdout
