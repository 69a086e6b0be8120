"""Tokens: how the cells of a grid lie in a tensor, whatever the order of its axes.

A convolution gives cells as (N, C, h, w). Swin's stages give (N, h, w, C), and a vision transformer gives
tokens (N, L, C): the cells row by row, mostly behind a class token and register tokens, which are no cells.
A `Layout` says which it is. It is followed from the input on, through every operation that moves axes, so
that nothing has to be known of a network: the tokens that `torch.cat` puts in front of the cells are counted
when that happens. Where cells are put in another order than that of rows, the layout is lost until a tensor
has rows and columns again (windows of cells are partitioned and joined so).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

_CHANNELS_FIRST = (2, 3)
_GUESSES = {4: (_CHANNELS_FIRST, (1, 2)), 3: ((1,), (2,), (1, 2))}  # by number of axes; the last is (N, h, w)


@dataclass(frozen=True)
class Layout:
    """How the cells of a grid lie in a tensor.

    Parameters
    ----------
    extent
        (h, w), in cells.
    axes
        Those of rows and columns; or one, of tokens, where the cells follow each other row by row.
    before, after
        Tokens that are no cells.
    known
        Whether that is so; else cells were put in another order since.
    """

    extent: tuple[int, int]
    axes: tuple[int, ...] = _CHANNELS_FIRST
    before: int = 0
    after: int = 0
    known: bool = True

    @property
    def sizes(self) -> tuple[int, ...]:
        """Sizes of a tensor at the axes; -1 where some of the cells were cut off."""
        return self._sizes_at(self.axes)

    def _sizes_at(self, axes: tuple[int, ...]) -> tuple[int, ...]:
        if len(axes) == 2:
            return self.extent
        whole = self.before >= 0 and self.after >= 0  # else some of the cells were cut off
        return (self.before + math.prod(self.extent) + self.after if whole else -1,)

    def _at(self, axes: tuple[int, ...], shape: Sequence[int]) -> bool:
        return max(axes) < len(shape) and tuple(shape[a] for a in axes) == self._sizes_at(axes)

    def fits(self, shape: Sequence[int]) -> bool:
        """Whether a tensor of that shape has its cells at these axes."""
        return self.known and self._at(self.axes, shape)

    def is_of(self, output: Tensor) -> bool:
        """Whether a tensor is (N, cells, channels) with the axes in some order, and more than one cell."""
        whole = output.ndim == 2 + len(self.axes) and 0 not in self.axes
        return whole and self.cells > 1 and self.fits(output.shape)

    @property
    def cells(self) -> int:
        """How many cells there are."""
        return math.prod(self.extent)

    def found_in(self, shape: Sequence[int]) -> Layout | None:
        """Return the layout in a tensor of that shape, if it has such cells; where two fit, this one's axes.

        After windows of cells it is known again only where there are rows and columns: tokens may lie in any
        order.
        """
        if self.fits(shape):
            return self
        fitting = [axes for axes in _GUESSES.get(len(shape), ()) if self._at(axes, shape)]
        fitting = [axes for axes in fitting if len(axes) == 2 or self.known]
        if not fitting or (len(fitting) > 1 and fitting[0] != _CHANNELS_FIRST):
            return None
        return replace(self, axes=self.axes if self.axes in fitting else fitting[0], known=True)

    def permuted(self, order: Sequence[int]) -> Layout:
        """Follow a permutation: axis i of the result is axis ``order[i]``."""
        order = [axis % len(order) for axis in order]
        return replace(self, axes=tuple(order.index(a) for a in self.axes))

    def viewed(self, shape: Sequence[int], new: Sequence[int]) -> Layout:
        """Follow a view of a tensor of a shape as one of another shape, both in row-major order."""
        starts = [math.prod(shape[:a]) for a in self.axes]
        found = [_axis(new, *at) for at in zip(starts, self.sizes, strict=True)]
        if None in found and not (self.before or self.after):
            rows, columns = self.extent
            if len(self.axes) == 1:  # tokens that are taken apart
                found = [_axis(new, starts[0], rows), _axis(new, starts[0] * rows, columns)]
            elif self.axes[1] == self.axes[0] + 1:  # rows and columns that are joined
                found = [_axis(new, starts[0], self.cells)]
        axes = tuple(axis for axis in found if axis is not None)
        return replace(self, axes=axes) if len(axes) == len(found) else replace(self, known=False)

    def without(self, axis: int) -> Layout:
        """Follow the removal of an axis, of one index of it."""
        return replace(self, axes=tuple(a - (a > axis) for a in self.axes), known=axis not in self.axes)

    def cut(self, start: int, tokens: int) -> Layout:
        """Follow a cut of ``tokens`` tokens from ``start`` on; negative where tokens are put in front."""
        before = self.before - start
        return replace(self, before=before, after=tokens - before - self.cells)

    def grid(self, output: Tensor) -> Tensor:
        """Return a tensor of this layout as (N, C, h, w), without the tokens that are no cells."""
        if self.axes == _CHANNELS_FIRST:
            return output
        last = tuple(range(-len(self.axes), 0))
        moved = output.movedim(self.axes, last)
        if len(self.axes) == 2:
            return moved
        cells = moved[..., self.before : self.before + self.cells]
        return cells.reshape(*cells.shape[:2], *self.extent)

    @property
    def has_others(self) -> bool:
        """Whether there are tokens that are no cells."""
        return self.before + self.after > 0

    def only_others_in(self, gradient: Tensor) -> bool:
        """Whether a gradient is 0 at all cells, but not at the tokens that are none."""
        return self.has_others and not self.grid(gradient).any() and bool(gradient.any())


def _axis(shape: Sequence[int], start: int, size: int) -> int | None:
    """Return the axis of that size behind ``start`` indices of those in front of it."""
    fitting = (j for j in range(len(shape)) if shape[j] == size and math.prod(shape[:j]) == start)
    return next(fitting, None)
