from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.paths import ROOT
from wsi_saliency.engines import summary
from wsi_saliency.engines.summary import Summary
from wsi_saliency.files import locked
from wsi_saliency.report.slides import COMPLETE, FAILED, SlideRow, read_summary


def row(folder, status=FAILED, when="2026-01-01", reason=""):
    return SlideRow(f"{folder}.svs", status, folder, reason, when=when)


@pytest.fixture
def complete(tmp_path):
    """Put a complete result where a row says one is."""

    def put(folder, when="2026-01-01"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "run.json").touch()
        return row(folder, COMPLETE, when)

    return put


def kept(folder, *rows):
    """Let a run over some slides end."""
    run = Summary(folder)
    for one in rows:
        run.add(one)
    run.close()
    return [(found.folder, found.status) for found in read_summary(folder)]


def test_runs_add_to_the_table_and_the_newer_row_counts(tmp_path, complete):
    assert kept(tmp_path, row("b"), row("a")) == [("a", FAILED), ("b", FAILED)]
    assert kept(tmp_path, complete("a", "2026-01-02")) == [("a", COMPLETE), ("b", FAILED)]
    assert kept(tmp_path, row("a", when="2026-01-01")) == [("a", COMPLETE), ("b", FAILED)]
    assert kept(tmp_path, row("a", when="2026-01-03")) == [("a", FAILED), ("b", FAILED)]
    assert "a.svs" in (tmp_path / "index.html").read_text()


def test_what_has_gone_from_the_folder_goes_from_the_table(tmp_path, complete):
    kept(tmp_path, complete("a"), complete("b"))
    (tmp_path / "a" / "run.json").unlink()
    assert kept(tmp_path, row("c")) == [("b", COMPLETE), ("c", FAILED)]


def test_it_is_written_while_slides_are_done_but_not_for_each(tmp_path, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(summary.time, "monotonic", lambda: clock[0])
    written = []
    monkeypatch.setattr(Summary, "_merge", lambda self, until: written.append(len(self._rows)))
    run = Summary(tmp_path)
    for number in range(100):
        clock[0] += 0.4
        run.add(row(str(number)))
    run.close()
    assert written == [13, 26, 39, 52, 65, 78, 91, 100]


def test_two_runs_that_write_at_the_same_time_lose_nothing(tmp_path):
    code = """
import sys
from pathlib import Path
from wsi_saliency.engines import summary
from wsi_saliency.report.slides import FAILED, SlideRow
summary._EVERY = summary._SHARE = 0
run = summary.Summary(Path(sys.argv[1]))
for number in range(20):
    run.add(SlideRow("a.svs", FAILED, f"{sys.argv[2]}{number}"))
run.close()
"""
    runs = [
        subprocess.Popen([sys.executable, "-c", code, tmp_path, name], cwd=ROOT, stderr=subprocess.PIPE)
        for name in "ab"
    ]
    assert [run.communicate(timeout=300)[1] for run in runs] == [b"", b""]
    assert {found.folder for found in read_summary(tmp_path)} == {f"{n}{i}" for n in "ab" for i in range(20)}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["index.html", "summary.csv"]


def test_who_finds_another_run_writing_waits_at_the_end_only(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(summary, "_EVERY", 0)
    monkeypatch.setattr(summary, "_PATIENCE", 0.2)
    run = Summary(tmp_path)
    with locked(tmp_path / "summary.csv", "file"):
        run.add(row("a"))
        run.close()
    assert read_summary(tmp_path) == []
    run.close()
    assert [found.folder for found in read_summary(tmp_path)] == ["a"]
    assert caplog.records == []


def test_what_cannot_be_written_is_said_once_and_stops_nothing(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(summary, "_EVERY", 0)
    (tmp_path / "summary.csv").write_text("mine\n")
    run = Summary(tmp_path)
    run.add(row("a"))
    run.add(row("b"))
    run.close()
    (line,) = [record.getMessage() for record in caplog.records]
    assert line.endswith("summary.csv: is not of this version of the program, and stays as it is")
    assert Path(tmp_path, "summary.csv").read_text() == "mine\n"
