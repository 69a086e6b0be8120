"""The patches of a result in which a map is strongest, so that people know where to look first."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from wsi_saliency.heatmap.result import columns_of, probability_column

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from wsi_saliency.heatmap.result import Result
    from wsi_saliency.mapspec import MapSpec


@dataclass(frozen=True)
class StrongPatch:
    """A patch: its box in level-0 pixels, the largest value in it, and the target's probability."""

    x: int
    y: int
    w: int
    h: int
    value: float
    probability: float


def strongest_patches(result: Result, most: int) -> dict[tuple[MapSpec, int], list[StrongPatch]]:
    """Choose, for each map and channel, the patches with the largest values; none covers another."""
    names = columns_of([found.spec for found in result.maps], result.targets)
    kinds = [(spec, channel) for spec, pairs in names.items() for channel in range(len(pairs))]
    largest = [names[spec][channel][1] for spec, channel in kinds]
    values = result.tile_values(["x", "y", "w", "h", *map(probability_column, result.targets), *largest])
    boxes, first = values[:, :4], 4 + len(result.targets)
    chosen = {}
    for number, kind in enumerate(kinds):
        strengths, probabilities = values[:, first + number], values[:, 4 + kind[1]]
        chosen[kind] = [
            StrongPatch(*_box(boxes[row]), float(strengths[row]), float(probabilities[row]))
            for row in apart(boxes, strengths, most)
        ]
    return chosen


def _box(numbers: NDArray[np.float64]) -> tuple[int, int, int, int]:
    x, y, w, h = (int(number) for number in numbers)
    return x, y, w, h


def apart(boxes: NDArray[np.float64], strengths: NDArray[np.float64], most: int) -> list[int]:
    """Choose the strongest of some boxes ``x, y, w, h``, none of which has a pixel in common with another."""
    left = np.argsort(-strengths, kind="stable")
    chosen: list[int] = []
    while left.size and len(chosen) < most:
        chosen.append(int(left[0]))
        x, y, w, h = boxes[left[0]]
        near = np.abs(boxes[left, 0] - x) < w
        near &= np.abs(boxes[left, 1] - y) < h
        left = left[~near]
    return chosen
