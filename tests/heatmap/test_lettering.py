from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsi_saliency.heatmap.lettering import drawable, font, lettered, shortened, upright


@pytest.mark.parametrize("bold", [False, True])
def test_the_font_has_all_that_the_program_writes_and_most_alphabets(bold: bool) -> None:
    text = "µm ∂y/∂A · × − … ′ – ² µ Łódź Ünïcode Срез Τομή 100 %"
    assert drawable(text, font(20, bold=bold)) == text


def test_what_cannot_be_drawn_is_a_box() -> None:
    assert drawable("切片\x01a\nb\udcff.svs", font(20)) == "□□\ufffda\ufffdb\ufffd.svs"


@given(st.text(max_size=60), st.integers(60, 400))
def test_any_text_fits_and_keeps_its_ends(text: str, width: int) -> None:
    face = font(16)
    shown = lettered(text, face, width)
    assert face.getlength(shown) <= width
    assert shown == drawable(text, face) or "…" in shown


def test_a_long_name_loses_its_middle_and_no_more_than_it_must() -> None:
    face = font(16)
    name = "".join(f"{i:03}" for i in range(100)) + ".svs"
    for width in range(100, 600, 50):
        start, end = shortened(name, face, width).split("…")
        assert name.startswith(start)
        assert name.endswith(end)
        assert len(start) == len(end)
        longer = f"{name[: len(start) + 1]}…{name[-len(end) - 1 :]}"
        assert face.getlength(longer) > width


def test_upright_text_is_read_from_below() -> None:
    mask = np.asarray(upright("l.......", font(20)))
    assert mask.shape[0] > mask.shape[1]
    rows = np.flatnonzero((mask > 128).sum(axis=1) > 0.8 * mask.shape[1])
    assert rows.size
    assert rows.min() > 0.8 * mask.shape[0]
