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
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from wsi_saliency.errors import SettingsError
from wsi_saliency.evaluation.candidates import explain_all
from wsi_saliency.evaluation.correlation import pearson
from wsi_saliency.evaluation.results import Phase
from wsi_saliency.evaluation.statistics import mean_of_known
from wsi_saliency.saliency.engine import eval_mode
from wsi_saliency.saliency.layers import find_layer, measure, total_stride
from wsi_saliency.saliency.patches import PatchExplainer, check_images
from wsi_saliency.settings import DEFAULT_ATTRIBUTION, DEFAULT_LAYER, DEFAULT_METHOD

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray
    from torch import nn

    from wsi_saliency.evaluation.candidates import Candidate, Explained
    from wsi_saliency.evaluation.results import Floats, MapKind
    from wsi_saliency.saliency.surrogate import Surrogate
    from wsi_saliency.settings import Attribution, Method, Precision

    Whole = NDArray[np.int64]

MOVES = 4
"""Moves of each patch."""

FEWEST_CELLS = 9
"""Cells that a correlation needs."""

_STEPS = 4  # the coarse set of moves: multiples of the total stride over so many
_SIDES = 6  # the border is at most one part of a patch in so many


def coarse_moves(total: int) -> Whole:
    """Return the moves (M, 2), (x, y) in pixels, by multiples of a quarter of the total stride below it."""
    steps = np.arange(0, total, max(1, total // _STEPS))
    x, y = np.meshgrid(steps, steps)
    return np.stack([x.ravel(), y.ravel()], 1)[1:]  # but for no move at all


def moves_of(n: int, total: int, moves: int = MOVES, seed: int = 0) -> Whole:
    """Draw moves for each of ``n`` patches, (n, K, 2): other ones for each, and all equally often.

    K is ``moves``, or as many as `coarse_moves` has.
    """
    coarse, rng = coarse_moves(total), np.random.default_rng(seed)
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
        (N, 3, P + S, P + S) normalised floats on the networks' device.
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


def measure_phase(
    compared: Sequence[Candidate],
    explained: Mapping[MapKind, Explained],
    surroundings: Surroundings,
    target: Tensor,
    batch: int,
    *,
    moves: int = MOVES,
    seed: int = 0,
    progress: Callable[[int], object] | None = None,
) -> list[Phase]:
    """Measure the phase stability of all candidates' maps, and of the blurs that are as smooth.

    Parameters
    ----------
    compared
        What `candidates` has made.
    explained
        What `explain_all` has found for the patches where they are.
    surroundings
        The patches, and what is around them.
    target
        (N,) int64 on the networks' device.
    batch
        Images per pass.
    moves, seed
        Moves of each patch, and the seed of their draw.
    progress
        Called with the number of images explained since the last call: N for each candidate and move.
    """
    total, n = surroundings.total_stride, len(surroundings.images)
    drawn = moves_of(n, total, moves, seed)
    edge = border(surroundings.images.shape[-1] - total, total)
    found: dict[MapKind, list[Floats]] = defaultdict(list)
    for k in range(drawn.shape[1]):
        images, moved = surroundings.moved(drawn[:, k])
        there, _ = explain_all(compared, images, target, batch, progress)
        for kind, maps in there.items():
            reduction = kind.reduction or 1
            alike = agreement(explained[kind].maps.numpy(), maps.maps.numpy(), moved, reduction, edge)
            found[kind].append(np.where(surroundings.known, alike, math.nan))
    return [Phase(kind, drawn, np.stack(columns, 1)) for kind, columns in found.items()]


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
    upper left corner, and others moved to the right and down by multiples of S/4 below S. The windows' maps
    are compared where they show the same, but for the outermost S pixels of each window.

    Parameters
    ----------
    model, layer, target, attribution, method, surrogate, batch_size, precision, steps
        As in `explain_patches`.
    images
        (N, 3, P + S, P + S) floats, normalised as the classifier wants them: patches of the size P that the
        classifier is meant for, and what is around them.
    moves, seed
        Moves of each image, of the 15 that there are, and the seed of their draw.
    baseline
        (3, P, P) or (1, 3, P, P), as in `explain_patches`.

    Returns
    -------
    Tensor
        (N,) float64 on the CPU: Pearson's correlation of maps as `explain_patches` gives them (magnitudes for
        ``gradient``), mean over moves. 1 where the map moves with the picture; nan where a map is constant,
        too few cells can be compared, or the total stride is 1.

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
    for move in moves_of(len(images), total, moves, seed).transpose(1, 0, 2):
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

    Where a move is no whole number of cells, both maps are interpolated linearly to the middle between their
    cells, so that both are blurred alike.

    Parameters
    ----------
    maps, moved
        (N, h, w): of patches, and of the same patches moved.
    moves
        (N, 2) pixels (x, y) by which the patches were moved to the right and down.
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
    return np.array(
        [
            _alike(*_aligned(a[inner], b[inner], x / reduction, y / reduction))
            for a, b, (x, y) in zip(maps, moved, moves.tolist(), strict=True)
        ]
    )


def _aligned(a: Floats, b: Floats, cells_x: float, cells_y: float) -> tuple[Floats, Floats]:
    """Cut two maps, the second of a picture moved by so many cells, to what they have in common."""
    a, b = _aligned_rows(a.astype(np.float64), b.astype(np.float64), cells_y)
    a, b = _aligned_rows(a.T, b.T, cells_x)
    return a.T, b.T


def _aligned_rows(a: Floats, b: Floats, cells: float) -> tuple[Floats, Floats]:
    whole = math.ceil(cells - 0.5)  # the nearest
    if cells < whole:
        b, a = _aligned_rows(b, a, -cells)
        return a, b
    if half := (cells - whole) / 2:  # row i + half of one lies where row i − whole − half of the other does
        a, b = (1 - half) * a[:-1] + half * a[1:], (1 - half) * b[1:] + half * b[:-1]
        whole += 1  # the other's rows begin with its second
    common = max(0, len(a) - abs(whole))
    return a[max(0, whole) :][:common], b[max(0, -whole) :][:common]


def _alike(a: Floats, b: Floats) -> float:
    return pearson(a, b) if a.size >= FEWEST_CELLS else math.nan
