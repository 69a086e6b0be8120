from __future__ import annotations

import json
import re
from dataclasses import replace

import pytest

from tests.helpers.commands import WITHOUT_LOGITS, left, only_line
from tests.helpers.nets import spot_classifier
from tests.helpers.paths import ROOT
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


LABELS = {"patch": "input", "layers": "layer", "notes": "note", "warnings": "warning"}


def entries(told):
    """Each fact of the JSON by the label of its line, as often as there is one."""
    for key, value in told.items():
        for one in value if key in ("layers", "notes", "warnings") else [value]:
            yield LABELS.get(key, key.replace("_", " ")), one


def numbers(value):
    """All numbers and texts in a value of JSON, but words of programs."""
    if isinstance(value, dict):
        return [n for key, inner in value.items() if key != "why" for n in numbers(inner)]
    return [n for inner in value for n in numbers(inner)] if isinstance(value, list) else [value]


def is_in(value, text):
    """Whether a line says a number of the JSON, at whatever precision, or one of its texts."""
    if value is None or isinstance(value, bool) or value in ("smooths", "nothing", "changes"):
        return True
    if isinstance(value, str):
        return value in text
    said = [
        (float(n), len(n.partition(".")[2])) for n in re.findall(r"-?\d+(?:\.\d+)?", text.replace("one", "1"))
    ]
    return any(
        abs(number * scale - value) <= 0.51 * scale * 10**-d for number, d in said for scale in (1, 1e6)
    )


def both(call, *arguments):
    """Lines and JSON of the same command."""
    as_lines, as_json = call("check-model", *arguments), call("check-model", *arguments, "--json")
    assert (as_lines.exit_code, as_json.exit_code) == (0, 0), as_lines.output + as_json.output
    lines = [(line[:14].strip(), line[14:]) for line in as_lines.stdout.splitlines()]
    return lines, json.loads(as_json.stdout)


def test_lines_and_json_say_the_same_facts(call):
    lines, told = both(call, "demo")
    assert sorted(label for label, _ in entries(told)) == sorted(label for label, _ in lines)
    for label, value in entries(told):
        texts = [text for other, text in lines if other == label]
        assert any(all(is_in(n, text) for n in numbers(value)) for text in texts), (label, value, texts)


def test_every_key_of_the_json_is_documented(call):
    page = (ROOT / "docs/classifiers.md").read_text()
    _, told = both(call, "demo")
    assert [key for key in told if f"| `{key}` |" not in page] == []
