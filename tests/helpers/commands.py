"""What tests of several commands share: what a command says and leaves, and what is put before it."""

from __future__ import annotations

import pytest
from torch import nn

from tests.helpers.paths import REAL_SLIDES
from tests.helpers.slides import section, write_svs
from wsi_saliency.settings import (
    EvaluationSettings,
    InspectSettings,
    ModelCheckSettings,
    RunSettings,
    TrainingSettings,
)

SETTINGS = {
    "run": RunSettings,
    "inspect": InspectSettings,
    "check-model": ModelCheckSettings,
    "train-surrogate": TrainingSettings,
    "evaluate": EvaluationSettings,
}
"""What the options of each command are made of."""

PICTURE = section(288, 192, (48, 48, 160, 112))

real = pytest.mark.skipif(not REAL_SLIDES.is_dir(), reason=f"no slides in {REAL_SLIDES}")


def left(folder):
    """Files that a run has left, without the slides."""
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file() and p.suffix != ".svs")


def only_line(result, code=1):
    """Return the one line that an error gave."""
    assert result.exit_code == code, result.output
    assert result.exception is None or isinstance(result.exception, SystemExit)
    (line,) = result.stderr.splitlines()
    assert line.startswith("Error: ")
    assert result.stdout == ""
    return line.removeprefix("Error: ")


def cut(path):
    whole = write_svs(path, [section(512, 512, seed=1)]).read_bytes()
    path.write_bytes(whole[: len(whole) * 6 // 10])


UNREADABLE = {
    "missing.svs": (lambda path: None, "no such file"),
    "text.svs": (lambda path: path.write_text("not a slide\n"), "it is a text file, not a slide"),
    "empty.svs": (lambda path: path.touch(), "the file is empty"),
    "truncated.svs": (cut, ""),
}
"""How to make a slide that cannot be read, and what is said of it."""


class FeatureMap(nn.Conv2d):
    """Gives a feature map (N, K, h, w) where logits should be."""

    def __init__(self):
        super().__init__(3, 2, 3)


class Pair(FeatureMap):
    """Gives two results where one should be."""

    def forward(self, x):
        return (x.mean((2, 3))[:, :2],) * 2


WITHOUT_LOGITS = [FeatureMap, Pair]
