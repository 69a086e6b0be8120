"""Phase stability: whether the map of a tissue depends on where the tissue lies between a network's strides.

A network of total stride S sees a picture that has moved by S pixels as it did before. Moved by less, the
picture falls otherwise on the strides, and the map may be another. So each picture is moved, its map is moved
back, and the two maps are correlated. The border of a patch moves with it and would count as a change: the
outermost total stride of both maps is left out. (On a ResNet-18, maps that have moved by a whole S, where
nothing but the border changes, then correlate by 0.97 or more at 1/4 and 1/8; with the border, some by 0.63.)
"""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from wsi_saliency.errors import SettingsError
from wsi_saliency.evaluation.correlation import pearson
from wsi_saliency.evaluation.maps import explain_all
from wsi_saliency.evaluation.measured import Phase
from wsi_saliency.evaluation.statistics import mean_of_known
from wsi_saliency.saliency.layers import find_layer, measure, total_stride
from wsi_saliency.saliency.network import eval_mode
from wsi_saliency.saliency.patches import PatchExplainer, check_images
from wsi_saliency.settings import DEFAULT_ATTRIBUTION, DEFAULT_LAYER, DEFAULT_METHOD

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from numpy.typing import NDArray
    from torch import nn

    from wsi_saliency.evaluation.maps import PatchMaps
    from wsi_saliency.evaluation.measured import Floats, MapKind
    from wsi_saliency.mapspec import MapSpec
    from wsi_saliency.saliency.batches import Batch
    from wsi_saliency.saliency.network import Network
    from wsi_saliency.saliency.surrogate import Surrogate
    from wsi_saliency.settings import Attribution, Method, Precision

    Whole = NDArray[np.int64]
    _Map = NDArray[np.floating]

MOVES = 4
"""Moves of each patch."""

FEWEST_CELLS = 9
"""Cells that a correlation needs."""

_STEPS = 4  # the coarse set of moves: multiples of the total stride over so many
_SIDES = 6  # the border is at most one part of a patch in so many


def coarse_moves(total: int, reduction: int) -> Whole:
    """Return the moves (M, 2), (x, y) in pixels, by whole cells of a layer; none where there are none.

    They are multiples, below the total stride, of a quarter of it or of a cell, whichever is more. By less
    than a cell, maps would have to be interpolated to be compared, which makes smooth ones look steady.

    Parameters
    ----------
    total
        The network's total stride, pixels; a multiple of the reduction.
    reduction
        Pixels per cell of the layer.
    """
    steps = np.arange(0, total, _step(total, reduction))
    x, y = np.meshgrid(steps, steps)
    return np.stack([x.ravel(), y.ravel()], 1)[1:]  # but for no move at all


def _step(total: int, reduction: int) -> int:
    return -(-max(1, total // _STEPS) // reduction) * reduction


def moves_of(n: int, total: int, reduction: int, moves: int = MOVES, seed: int = 0) -> Whole:
    """Draw moves for each of ``n`` patches, (n, K, 2): other ones for each, and all equally often.

    K is ``moves``, or as many as `coarse_moves` has.
    """
    coarse, rng = coarse_moves(total, reduction), np.random.default_rng(seed)
    each = min(moves, len(coarse))
    rounds = -(-n * each // len(coarse)) if each else 0
    order = np.concatenate([np.empty(0, int), *(rng.permutation(len(coarse)) for _ in range(rounds))])
    drawn: Whole = coarse[order[: n * each].astype(int)].reshape(n, each, 2)
    return drawn


@dataclass(frozen=True)
class Surroundings:
    """Patches with the tissue around them, one total stride in all along each axis.

    Parameters
    ----------
    images
        (N, 3, P + S, P + S) normalised floats on the network's device.
    corners
        (N, 2): where in its image each patch begins, (x, y) in whole pixels, 0 to S.
    known
        (N,) bool: whether all of the image is of the slide; where not, the patch is left out.
    total_stride
        S, pixels.
    """

    images: Tensor
    corners: Whole
    known: NDArray[np.bool_]
    total_stride: int

    def moved(self, moves: Whole) -> tuple[Tensor, Whole]:
        """Cut the patches again, each moved by (x, y), (N, 2); return them (N, 3, P, P), and how they moved.

        Where that would leave the image, a patch moves by one total stride less: to the other side.
        """
        there = self.corners + moves
        back = np.where(there > self.total_stride, self.total_stride, 0)
        return self._cut(there - back), moves - back

    def _cut(self, corners: Whole) -> Tensor:
        side = self.images.shape[-1] - self.total_stride
        return torch.stack(
            [
                image[:, y : y + side, x : x + side]
                for image, (x, y) in zip(self.images, corners.tolist(), strict=True)
            ]
        )


def phase_cost(network: Network, n: int, total: int, moves: int = MOVES) -> int:
    """Return how many maps `measure_phase` makes of ``n`` patches, where the total stride is ``total``."""
    reductions = [network.geometry[spec].reduction for spec in network.maps]
    return n * sum(min(moves, len(coarse_moves(total, reduction))) for reduction in reductions)


def measure_phase(
    network: Network,
    explained: Mapping[MapKind, PatchMaps],
    surroundings: Surroundings,
    target: Tensor,
    batch: int | Batch,
    *,
    moves: int = MOVES,
    seed: int = 0,
    progress: Callable[[int], object] | None = None,
) -> list[Phase]:
    """Measure the phase stability of all of a network's maps, and of the blurs that are as smooth.

    Those at layers that cannot be moved by whole cells are left out.

    Parameters
    ----------
    network
        What makes the maps that are compared.
    explained
        What `explain_all` has found for the patches where they are.
    surroundings
        The patches, and what is around them.
    target
        (N,) int64 on the network's device.
    batch
        Images per pass; halved when they do not fit.
    moves, seed
        Moves of each patch, and the seed of their draw.
    progress
        Called with the number of maps made since the last call; `phase_cost` in all.
    """
    n, total = len(surroundings.images), surroundings.total_stride
    edge = border(surroundings.images.shape[-1] - total, total)
    found: dict[MapKind, Phase] = {}
    for step, maps in _by_step(network, total).items():
        drawn = moves_of(n, total, step, moves, seed)
        alike: dict[MapKind, list[Floats]] = defaultdict(list)
        for move in drawn.transpose(1, 0, 2):
            images, moved = surroundings.moved(move)
            there, _ = explain_all(replace(network, maps=maps), images, target, batch, progress)
            for kind, other in there.items():
                pair = explained[kind].maps.numpy(), other.maps.numpy()
                column = agreement(*pair, moved, kind.reduction or 1, edge)
                alike[kind].append(np.where(surroundings.known, column, math.nan))
        found |= {kind: Phase(kind, drawn, np.stack(columns, 1)) for kind, columns in alike.items()}
    return [found[kind] for kind in explained if kind in found]


def _by_step(network: Network, total: int) -> dict[int, tuple[MapSpec, ...]]:
    """Return the maps that are moved alike, by the step between their moves."""
    steps = {spec: _step(total, network.geometry[spec].reduction) for spec in network.maps}
    return {step: tuple(spec for spec in steps if steps[spec] == step) for step in sorted({*steps.values()})}


def phase_stability(
    model: nn.Module,
    images: Tensor,
    layer: str | int | nn.Module = DEFAULT_LAYER,
    target: int | Tensor | None = None,
    attribution: Attribution = DEFAULT_ATTRIBUTION,
    method: Method = DEFAULT_METHOD,
    *,
    moves: int = MOVES,
    seed: int = 0,
    baseline: Tensor | None = None,
    surrogate: Surrogate | Path | None = None,
    batch_size: int | None = None,
    precision: Precision = "fp32",
    steps: int = 50,
) -> Tensor:
    """Measure how alike the maps of a picture are, wherever it lies between the network's strides.

    With a total stride of S (32 for most networks), windows one S smaller are cut from each image: one at its
    upper left corner, and others moved to the right and down by multiples, below S, of S/4, or of a cell if
    that is more. The windows' maps are compared where they show the same, but for the outermost S pixels of
    each window.

    Parameters
    ----------
    model, layer, target, attribution, method, surrogate, batch_size, precision, steps
        As in `explain_patches`.
    images
        (N, 3, P + S, P + S) floats, normalised as the classifier wants them: patches of the size P that the
        classifier is meant for, and what is around them.
    moves, seed
        Moves of each image, of the 15 that there are (3 where a cell is S/2), and the seed of their draw.
    baseline
        (3, P, P) or (1, 3, P, P), as in `explain_patches`.

    Returns
    -------
    Tensor
        (N,) float64 on the CPU: Pearson's correlation of maps as `explain_patches` gives them (magnitudes for
        ``gradient``), mean over moves. 1 where the map moves with the picture; nan where a map is constant,
        too few cells can be compared, or a cell is no smaller than the total stride.

    Raises
    ------
    ModelError
        If the model, the layer or the combination cannot be explained.
    SettingsError
        If the images are too small to be moved, or images, target or baseline do not fit.
    """
    check_images(images)
    device = next((p.device for p in model.parameters()), images.device)
    images = images.to(device)
    with eval_mode(model):
        total = total_stride(model, images[:1])
        side = _window(images, total)
        sample = images[:1, :, :side, :side]
        reduction = measure(model, find_layer(model, layer, sample), sample).reduction
    explain = PatchExplainer(
        model,
        sample,
        layer,
        attribution,
        method,
        baseline=baseline,
        surrogate=surrogate,
        precision=precision,
        steps=steps,
    )

    def maps(windows: Tensor) -> NDArray[np.float32]:
        return explain(windows, target, batch_size=batch_size).numpy()

    corners = np.zeros((len(images), 2), np.int64)
    around = Surroundings(images, corners, np.ones(len(images), bool), total)
    plain, edge = maps(around.moved(corners)[0]), border(side, total)
    found = []
    for move in moves_of(len(images), total, reduction, moves, seed).transpose(1, 0, 2):
        windows, moved = around.moved(move)
        found.append(agreement(plain, maps(windows), moved, reduction, edge))
    return torch.from_numpy(mean_of_known(np.reshape(found, (-1, len(images))).T))


def _window(images: Tensor, total: int) -> int:
    """Return the side of the windows that can be moved in the images."""
    height, width = images.shape[2:]
    if height != width or height <= 2 * total:
        raise SettingsError(
            f"images are {width} × {height} px; to be moved by up to {total} px, the network's total stride, "
            f"they have to be squares of a patch's side and {total} px more"
        )
    return height - total


def border(patch: int, total: int) -> int:
    """Return the width in pixels of what is left out: the total stride, at most a sixth of the patch."""
    return min(total, patch // _SIDES)


def agreement(
    maps: NDArray[np.floating], moved: NDArray[np.floating], moves: Whole, reduction: int, edge: int
) -> Floats:
    """Correlate maps with those of moved patches, where they show the same tissue.

    Parameters
    ----------
    maps, moved
        (N, h, w): of patches, and of the same patches moved.
    moves
        (N, 2) pixels (x, y) by which the patches were moved to the right and down, whole cells.
    reduction
        Pixels per cell.
    edge
        Pixels at each patch's border that are left out, rounded up to whole cells.

    Returns
    -------
    (N,) Pearson's correlation, float64; nan where fewer than 9 cells are left or a map is constant.
    """
    cut = -(-edge // reduction)
    inner = np.s_[cut : maps.shape[1] - cut, cut : maps.shape[2] - cut]
    cells = (moves // reduction).tolist()
    return np.array(
        [
            _alike(*_in_common(a[inner], b[inner], x, y))
            for a, b, (x, y) in zip(maps, moved, cells, strict=True)
        ]
    )


def _in_common(a: _Map, b: _Map, cells_x: int, cells_y: int) -> tuple[_Map, _Map]:
    """Cut two maps, the second of a picture moved by so many cells, to what they have in common."""
    height, width = (max(0, n - abs(m)) for n, m in zip(a.shape, (cells_y, cells_x), strict=True))
    a, b = a[max(0, cells_y) :, max(0, cells_x) :], b[max(0, -cells_y) :, max(0, -cells_x) :]
    return a[:height, :width], b[:height, :width]


def _alike(a: _Map, b: _Map) -> float:
    return pearson(a, b) if a.size >= FEWEST_CELLS else math.nan
