from __future__ import annotations

import csv

import pytest

from wsi_saliency.errors import OutputError
from wsi_saliency.heatmap.snapshot import DamagedSnapshotError
from wsi_saliency.heatmap.tile_table import tile_table

COLUMNS = ["x", 'probability_µ, "quoted"']
ROWS = [[i, f"{i / 7:.6g}"] for i in range(9)]


def written(path, rows, kept=None):
    """Write rows; return how many bytes there were before the first and after each."""
    with tile_table(path, COLUMNS, kept) as table:
        sizes = [table.size()]
        for row in rows:
            table.write(row)
            sizes.append(table.size())
    return sizes


def test_rows_stand_below_their_columns(tmp_path):
    sizes = written(tmp_path / "tiles.csv", ROWS)
    with (tmp_path / "tiles.csv").open(newline="", encoding="utf-8") as file:
        assert list(csv.reader(file)) == [COLUMNS, *([str(x), text] for x, text in ROWS)]
    assert sizes[-1] == (tmp_path / "tiles.csv").stat().st_size


@pytest.mark.parametrize("kept", range(len(ROWS) + 1))
@pytest.mark.parametrize("half", [b"", b"7,0.14", b"8,1\r\n9,2\r\n"])
def test_a_table_that_is_gone_on_with_is_that_of_one_go(tmp_path, kept, half):
    """Whatever came after the bytes that are kept, half a row too."""
    sizes = written(tmp_path / "whole.csv", ROWS)
    written(tmp_path / "tiles.csv", ROWS[:kept])
    with (tmp_path / "tiles.csv").open("ab") as file:
        file.write(half)
    again = written(tmp_path / "tiles.csv", ROWS[kept:], sizes[kept])
    assert again == sizes[kept:]
    assert (tmp_path / "tiles.csv").read_bytes() == (tmp_path / "whole.csv").read_bytes()


def test_a_table_that_is_too_short_or_missing_is_refused(tmp_path):
    sizes = written(tmp_path / "tiles.csv", ROWS[:3])
    for name, kept in (("tiles.csv", sizes[-1] + 1), ("missing.csv", 0)):
        with pytest.raises(DamagedSnapshotError, match="too short"):
            written(tmp_path / name, ROWS, kept)
    assert (tmp_path / "tiles.csv").stat().st_size == sizes[-1]


def test_where_nothing_can_be_written_it_is_one_line(tmp_path):
    with pytest.raises(OutputError, match=r"tiles\.csv: cannot be written"):
        written(tmp_path / "missing" / "tiles.csv", ROWS)
