from __future__ import annotations

import json
import math

import pytest

from wsi_saliency.errors import SettingsError
from wsi_saliency.settings import RunSettings


@pytest.mark.parametrize(
    "span", [(1, 0), (0, 0), (0, math.nan), (-math.inf, 0), (0, math.inf), (0, 1e-40), (0, 1e40)]
)
def test_a_range_that_colours_cannot_span_is_refused(span: tuple[float, float]) -> None:
    with pytest.raises(SettingsError, match=r"--range .*: LOW has to be below HIGH"):
        RunSettings(range=span)


def test_settings_are_the_same_after_json() -> None:
    settings = RunSettings(range=(-0.5, 2.0)).to_json()
    assert json.loads(json.dumps(settings)) == settings
