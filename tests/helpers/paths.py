"""Where things lie that tests use."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).parents[2]
SAMPLE_DATA = ROOT / "sample_data"
SAMPLE = SAMPLE_DATA / "tumour_nests.svs"
REAL_SLIDES = ROOT.parent / "shared" / "slides"
"""Real slides beside the checkout; what needs them is skipped where they are not."""
