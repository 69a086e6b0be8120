from __future__ import annotations

from types import SimpleNamespace

import pytest

from wsi_saliency.settings import TrainingSettings
from wsi_saliency.workflows import train


@pytest.fixture
def asked(monkeypatch):
    """Train nothing; note what was asked for."""
    seen = {}

    def note(slides, file, settings, **how):
        seen.update(slides=slides, file=str(file), settings=settings, **how)
        return SimpleNamespace(scores=None)

    monkeypatch.setattr(train, "train_surrogate_on_slides", note)
    return seen


def test_options_reach_the_training(call, slide, asked):
    given = {
        "model": "demo",
        "patches": 50,
        "held_out": 0.2,
        "balance": "tumour",
        "epochs": 3,
        "batch": 4,
        "lr": 0.01,
        "seed": 7,
        "mpp": 0.4,
        "model_mpp": 0.6,
        "patch": 96,
        "workers": 2,
        "device": "cpu",
    }
    arguments = [word for name, v in given.items() for word in (f"--{name.replace('_', '-')}", v)]
    result = call("train-surrogate", slide, "-o", "new/s.st", "--overwrite", *arguments)
    assert result.exit_code == 0, result.output
    assert asked["settings"] == TrainingSettings(**given)
    assert (asked["slides"], asked["file"], asked["progress"]) == ([slide], "new/s.st", True)
    assert asked["overwrite"]
    assert result.stdout.splitlines()[-1] == "written       new/s.st"


def test_quiet_says_nothing(call, slide, asked):
    result = call("train-surrogate", slide, "--quiet")
    assert (result.exit_code, result.output) == (0, "")
    assert (asked["settings"], asked["progress"]) == (TrainingSettings(), False)
    assert not asked["overwrite"]
