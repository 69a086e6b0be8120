from __future__ import annotations

from dataclasses import replace

import pytest

from tests.helpers.commands import WITHOUT_LOGITS, left, only_line
from tests.helpers.nets import spot_classifier
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
