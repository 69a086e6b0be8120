from __future__ import annotations

import io
import sys

import pytest

from wsi_saliency.engines.bars import NoBars, TerminalBars


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def shown(monkeypatch):
    """What two slides on two devices show."""

    def shown(stream, bars):
        monkeypatch.setattr(sys, "stderr", stream)
        bars = bars()
        bars.begin("cpu", "a\x1b[2J.svs", 4)
        bars.begin("gpu", "b.svs", 3)
        bars.advance("cpu", 4)
        bars.end("cpu")
        bars.end("cpu")
        bars.slide_done()
        bars.close()
        return stream.getvalue()

    return shown


def test_a_terminal_shows_patches_of_each_slide_and_all_slides(shown):
    text = shown(Terminal(), lambda: TerminalBars(2))
    assert all(words in text for words in (r"a\x1b[2J.svs: ", "0/4", "b.svs: ", "slides:  50%", "1/2"))
    assert "\x1b[2J" not in text


def test_nothing_is_shown_without_a_terminal_or_wish(shown):
    assert shown(io.StringIO(), lambda: TerminalBars(2)) == ""
    assert shown(Terminal(), NoBars) == ""
