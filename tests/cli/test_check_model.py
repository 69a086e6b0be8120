from __future__ import annotations

import json
from dataclasses import replace

import pytest

from tests.helpers.commands import WITHOUT_LOGITS, left, only_line
from tests.helpers.facts import check_same
from tests.helpers.nets import spot_classifier
from tests.helpers.pictures import write_pictures
from wsi_saliency.models import loading


def test_it_prints_what_it_describes(call):
    result = call("check-model", "demo")
    assert result.exit_code == 0
    assert result.stdout.startswith("model         demo\n")
    assert "input         224 × 224 px\n" in result.stdout


def test_options_reach_the_classifier(call):
    result = call("check-model", "demo", "--patch", "96", "--model-mpp", "1.5")
    assert "input         96 × 96 px\n" in result.stdout
    assert "mpp           1.5 µm/px\n" in result.stdout


@pytest.mark.parametrize("module", WITHOUT_LOGITS)
def test_a_classifier_without_logits(call, tmp_path, monkeypatch, module):
    monkeypatch.setattr(loading, "_load", lambda *_: replace(spot_classifier(64), module=module()))
    line = only_line(call("check-model", "spots"))
    assert "spots" in line
    assert "logits (N, K)" in line
    assert left(tmp_path) == []


def both(call, *arguments):
    """Lines and JSON of the same command."""
    as_lines, as_json = call("check-model", *arguments), call("check-model", *arguments, "--json")
    assert (as_lines.exit_code, as_json.exit_code) == (0, 0), as_lines.output + as_json.output
    lines = [(line[:14].strip(), line[14:]) for line in as_lines.stdout.splitlines()]
    return lines, json.loads(as_json.stdout)


def test_lines_and_json_say_the_same_facts(call):
    lines, told = both(call, "demo")
    check_same(lines, told)


def test_a_sheet_is_written_and_named(call, tmp_path):
    write_pictures(tmp_path / "pictures", {"tumour/a.png": 90, "normal/b.png": 200}, side=224)
    result = call("check-model", "demo", "--patches", "pictures", "-o", "sheet.png")
    assert result.exit_code == 0, result.output
    assert "patches       2 of 2 pictures of pictures: 224 × 224 px (2)\n" in result.stdout
    assert "sheet         sheet.png\n" in result.stdout
    assert (tmp_path / "sheet.png").read_bytes().startswith(b"\x89PNG")


def test_a_sheet_is_a_png_file(call, tmp_path):
    line = only_line(call("check-model", "demo", "--patches", "pictures", "-o", "facts.json"))
    assert line == "out (-o) is facts.json; it has to end in .png"
    assert left(tmp_path) == []


def test_a_sheet_of_nothing_is_refused(call, tmp_path):
    assert "give --patches FOLDER or --slide SLIDE" in only_line(call("check-model", "demo", "-o", "a.png"))
    assert left(tmp_path) == []


def test_pictures_or_a_slide(call):
    result = call("check-model", "demo", "--patches", "a", "--slide", "b.svs")
    assert result.exit_code == 2
    assert "choose one" in result.stderr
