"""From values to colours and opacities."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

OPAQUE = 0.8
"""Opacity of the strongest values."""

# Both maps are linear between these colours: magma from 0.15 to 0.95, and ColorBrewer's RdBu. Their ends,
# almost black and almost white, are left out: both occur in tissue.
_MAGMA = (
    "251255 3b0f70 51127c 641a80 782281 8c2981 a1307e b73779 ca3e72 "
    "de4968 ed5a5f f7705c fc8961 fe9f6d feb77e fecf92 fde7a9"
)
_BLUE_RED = "053061 2065ab 4393c3 90c4dd d1e5f0 f7f6f6 fddbc7 f3a481 d6604d b1182b 67001f"
_BLUE_RED_USED = 0.06, 0.94
_STEPS = 511


@dataclass(frozen=True)
class ColourScale:
    """Colours of the values from ``low`` to ``high``; those beyond have the colours of the ends.

    The opacity grows with the magnitude, so that tissue stays visible where the map says little.

    Parameters
    ----------
    low, high
        Values of the first and the last colour.
    table
        (N, 4) uint8, red, green, blue and opacity in equal steps from ``low`` to ``high``.
    """

    low: float
    high: float
    table: NDArray[np.uint8]

    @classmethod
    def magnitudes(cls, low: float, high: float) -> ColourScale:
        """From transparent dark violet at ``low`` to yellow at ``high``."""
        position = np.linspace(0, 1, _STEPS)
        return cls(low, high, _table(_MAGMA, position, position))

    @classmethod
    def diverging(cls, limit: float) -> ColourScale:
        """From blue at ``-limit`` over nothing at 0 to red at ``limit``."""
        position = np.linspace(-1, 1, _STEPS)
        return cls(-limit, limit, _table(_BLUE_RED, np.linspace(*_BLUE_RED_USED, _STEPS), position))

    @classmethod
    def displaying(cls, low: float, high: float, *, signed: bool) -> ColourScale:
        """For the values from ``low`` to ``high``; signed ones as far on both sides of 0."""
        return cls.diverging(max(abs(low), abs(high))) if signed else cls.magnitudes(low, high)

    def __call__(self, values: NDArray[np.float32]) -> NDArray[np.uint8]:
        """Colour ``values`` of any shape: (…, 4) uint8; 0, which was not computed, is transparent."""
        step = self._steps(values, len(self.table) - 1)
        # A colour is looked up as one number of four bytes, which is several times faster.
        numbers = self.table.view(np.uint32)[:, 0][step]
        colours: NDArray[np.uint8] = numbers.view(np.uint8).reshape(*values.shape, 4)
        colours[values == 0, 3] = 0
        return colours

    @property
    def palette(self) -> NDArray[np.uint8]:
        """(256, 4) uint8: nothing, and every other colour of the table."""
        return np.concatenate([np.zeros((1, 4), np.uint8), self.table[1::2]])

    def indices(self, values: NDArray[np.float32]) -> NDArray[np.uint8]:
        """Return the places in `palette` of ``values`` of any shape, uint8; 0 has that of nothing."""
        places = 1 + self._steps(values, len(self.table) // 2 - 1)
        return np.where(values == 0, 0, places).astype(np.uint8)

    def _steps(self, values: NDArray[np.float32], last: int) -> NDArray[np.uint16]:
        """Which of the steps from 0 to ``last`` each value takes."""
        share = (np.clip(values, self.low, self.high) - self.low) / (self.high - self.low)
        return np.asarray(np.rint(share * last), np.uint16)


def _table(anchors: str, position: NDArray[np.float64], strength: NDArray[np.float64]) -> NDArray[np.uint8]:
    """Colours at ``position`` (0 to 1) between the anchors, as opaque as ``strength`` (−1 to 1) wants it."""
    rgb = np.array([list(bytes.fromhex(anchor)) for anchor in anchors.split()])
    at = np.linspace(0, 1, len(rgb))
    channels = [np.interp(position, at, rgb[:, channel]) for channel in range(3)]
    opacity = 255 * OPAQUE * np.abs(strength) ** 0.6
    table: NDArray[np.float64] = np.rint(np.stack([*channels, opacity], axis=1))
    return table.astype(np.uint8)
