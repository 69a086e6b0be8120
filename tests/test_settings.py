from __future__ import annotations

import math
from pathlib import Path

import pytest

from wsi_saliency.errors import SettingsError
from wsi_saliency.evaluation_settings import MAX_STABILITY_MPX, EvaluationSettings
from wsi_saliency.settings import MAX_OVERLAP, MAX_PATCH, Bounds, RunSettings
from wsi_saliency.training_settings import TrainingSettings

KINDS = (RunSettings, EvaluationSettings, TrainingSettings)
NUMBERS = [
    *((kind, name, [0.1, 500.0], [0, -0.5]) for kind in KINDS for name in ("mpp", "model_mpp")),
    *((kind, "patch", [None, 8, MAX_PATCH], [0, 100_000]) for kind in KINDS),
    (RunSettings, "overlap", [0, MAX_OVERLAP], [-0.1, 0.95]),
    (RunSettings, "tissue_threshold", [0, 1], [-0.1, 1.1]),
    (EvaluationSettings, "annotation_scale", [1e-3, 64], [0, -1]),
    (EvaluationSettings, "stability_mpx", [0, MAX_STABILITY_MPX], [-1, 17]),
    (EvaluationSettings, "tissue_threshold", [0, 1], [2]),
    (TrainingSettings, "lr", [1e-9, 1.0], [0, -1]),
    (TrainingSettings, "held_out", [0, 0.5], [-0.1, 1]),
]


@pytest.mark.parametrize(("kind", "name", "good", "bad"), NUMBERS)
def test_a_number_out_of_its_bounds_is_one_line_that_names_it(kind, name, good, bad):
    for value in good:
        assert getattr(kind(**{name: value}), name) == value
    for value in (*bad, math.nan, math.inf, -math.inf):
        with pytest.raises(SettingsError) as caught:
            kind(**{name: value})
        line = str(caught.value)
        assert line.startswith(f"{name} (--{name.replace('_', '-')}) is {value:g}; it has to be a number ")
        assert "\n" not in line


def test_bounds_say_what_they_hold():
    assert str(Bounds(0, 1)) == "from 0 to 1"
    assert str(Bounds(0, open=True)) == "above 0"
    assert str(Bounds(1)) == "at least 1"
    assert [value in Bounds(0, open=True) for value in (0, 1e-300, math.inf)] == [False, True, False]


@pytest.mark.parametrize("method", ["none", "backward-hook", "forward-hook"])
def test_a_surrogate_that_would_be_ignored_is_refused(method):
    file = Path("s.safetensors")
    with pytest.raises(SettingsError, match=r"--surrogate s\.safetensors.*add --method surrogate"):
        RunSettings(method=method, surrogate=file)
    with pytest.raises(SettingsError, match=rf"add surrogate to --methods none,{method} "):
        EvaluationSettings(methods=("none", method), surrogate=file)
    RunSettings(method="surrogate", surrogate=file)
    EvaluationSettings(surrogate=file)
    EvaluationSettings(methods=("none", "surrogate"), surrogate=file)
