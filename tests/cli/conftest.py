from __future__ import annotations

import logging
import math

import pytest
from click.testing import CliRunner

from tests.helpers.commands import PICTURE
from tests.helpers.nets import spot_classifier
from tests.helpers.runs import without_pictures
from tests.helpers.slides import write_svs
from wsi_saliency.cli import cli
from wsi_saliency.engines import folders
from wsi_saliency.models import loading


@pytest.fixture(autouse=True)
def _own_logging():
    """Leave no handler behind that writes to a stream of a test that is over."""
    loggers = [logging.getLogger(name) for name in ("wsi_saliency", "tifffile")]
    before = [(logger, logger.handlers[:], logger.level) for logger in loggers]
    yield
    for logger, handlers, level in before:
        logger.handlers[:] = handlers
        logger.setLevel(level)


@pytest.fixture
def spots(monkeypatch):
    """Replace every classifier by the hand-set one, and the picture, which takes longest, by nothing.

    Slides stay in this process: another one would load the classifier that is asked for.
    """
    monkeypatch.setattr(folders, "ISOLATED_FROM", math.inf)
    monkeypatch.setattr(loading, "_load", lambda uri, weights: spot_classifier(64))
    without_pictures(monkeypatch)


@pytest.fixture
def call(tmp_path, monkeypatch):
    """Call the program in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments):
        with monkeypatch.context() as patch:
            patch.setattr(logging.root, "handlers", [])  # pytest's own hide what a library would print
            return CliRunner().invoke(cli, [str(a) for a in arguments], prog_name="wsi-saliency")

    return call


@pytest.fixture
def slide(tmp_path):
    return write_svs(tmp_path / "slide.svs", [PICTURE])
