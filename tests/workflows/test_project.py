from __future__ import annotations

import json
import logging
import shutil
from typing import TYPE_CHECKING

import numpy as np
import pytest

from tests.helpers.results import Planted
from wsi_saliency.errors import OutputError
from wsi_saliency.heatmap.qupath import OPEN_ALL, PROJECT_OVERLAY
from wsi_saliency.heatmap.result import RUN_JSON
from wsi_saliency.workflows.project import KNOWN, extend_project, find_results

if TYPE_CHECKING:
    from pathlib import Path

MADE = {OPEN_ALL, PROJECT_OVERLAY, KNOWN}


@pytest.fixture
def maps(tmp_path: Path) -> Path:
    for name in ("b/two", "a", "c"):
        Planted(name=f"{name[-1]}.svs").write(tmp_path / "maps" / name, [np.ones((1, 9, 9))])
    return tmp_path / "maps"


def made(project: Path) -> set[str]:
    return {path.relative_to(project).as_posix() for path in project.rglob("*") if path.is_file()}


def test_results_are_found_in_a_folder_and_below_it(maps: Path) -> None:
    assert [result.folder for result in find_results(maps)] == [maps / name for name in ("a", "b/two", "c")]
    assert [result.folder for result in find_results(maps / "a")] == [maps / "a"]
    (maps / "a" / RUN_JSON).write_text('{"status": "running"}')
    assert len(find_results(maps)) == 2


@pytest.mark.parametrize(
    ("text", "words"),
    [(None, "no complete result"), ('{"status": "complete"}', "not written by this version")],
)
def test_what_is_no_result_is_named(tmp_path: Path, text: str | None, words: str) -> None:
    (tmp_path / "a").mkdir()
    if text:
        (tmp_path / "a" / RUN_JSON).write_text(text)
    with pytest.raises(OutputError, match=rf"{tmp_path}.*{words}"):
        extend_project(tmp_path / "project", [tmp_path / "a"])
    assert not (tmp_path / "project").exists()


def test_a_project_is_made_and_extended(maps: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    project = tmp_path / "new" / "project"
    first = extend_project(project, [maps / "a", maps / "a"])
    assert made(project) == MADE
    assert [result.folder for result in first] == [maps / "a"]
    (project / "project.qpproj").write_text("QuPath's own")
    second = extend_project(project, [maps / "c", maps])
    assert [result.folder.name for result in second] == ["a", "c", "two"]
    assert made(project) == {*MADE, "project.qpproj"}
    assert (project / "project.qpproj").read_text() == "QuPath's own"
    shutil.rmtree(maps / "a")
    with caplog.at_level(logging.WARNING):
        third = extend_project(project, [maps / "c"])
    assert [result.folder.name for result in third] == ["c", "two"]
    assert f"{maps / 'a'}: no longer a complete result" in caplog.text
    assert json.loads((project / KNOWN).read_text()) == [str(maps / "c"), str(maps / "b" / "two")]


@pytest.mark.parametrize("text", ["no json", "7", "[7]"])
def test_a_damaged_list_of_results_is_named(maps: Path, tmp_path: Path, text: str) -> None:
    extend_project(tmp_path / "project", [maps])
    (tmp_path / "project" / KNOWN).write_text(text)
    with pytest.raises(OutputError, match=r"wsi-saliency\.json: cannot be read"):
        extend_project(tmp_path / "project", [maps])


def test_a_file_is_no_project(maps: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="it is a file, not a folder"):
        extend_project(tmp_path / "file", [maps])
