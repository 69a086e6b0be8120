"""Places: where the cells of every tensor of a forward pass lie in the network's input.

They flow through one forward pass, operation by operation, and are so found for any network: asymmetric
"same" padding, pooling and branches included.
"""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

Pair = tuple[float, float]  # (y, x), as in a tensor's shape


@dataclass(frozen=True)
class Places:
    """Where the cells of one tensor lie: (y, x) pairs in input pixels; ``extent`` counts its cells.

    ``passed`` names the strided convolutions on any way to the tensor.
    """

    extent: tuple[int, int]
    jump: Pair
    centre: Pair
    drift: Pair = (0.0, 0.0)
    passed: frozenset[str] = frozenset()

    @classmethod
    def of_input(cls, images: Tensor) -> Places:
        """Return the places of the pixels of images (N, 3, H, W)."""
        return cls((images.shape[2], images.shape[3]), (1.0, 1.0), (0.5, 0.5))

    def window(
        self,
        extent: tuple[int, int],
        kernel: Sequence[int],
        stride: Sequence[int],
        padding: Sequence[int],
        dilation: Sequence[int],
    ) -> Places:
        """Places after a sliding window."""
        centre = _pair(
            lambda a: self.centre[a] + ((kernel[a] - 1) * dilation[a] / 2 - padding[a]) * self.jump[a]
        )
        return replace(self, extent=extent, jump=_pair(lambda a: self.jump[a] * stride[a]), centre=centre)

    def shifted(self, extent: tuple[int, int], cells: Pair) -> Places:
        """Places after ``cells`` cells were cut off (or, negative, put) in front."""
        return replace(self, extent=extent, centre=_pair(lambda a: self.centre[a] + cells[a] * self.jump[a]))

    def resized(self, extent: tuple[int, int]) -> Places:
        """Places after an operation known only by its output's size: padding, or an even resampling."""
        scale = _pair(lambda a: _even_scale(self.extent[a], extent[a]))
        crop = _pair(lambda a: (self.extent[a] - extent[a] * scale[a]) / 2)
        centre = _pair(lambda a: self.centre[a] + (crop[a] + scale[a] / 2 - 0.5) * self.jump[a])
        return replace(self, extent=extent, jump=_pair(lambda a: self.jump[a] * scale[a]), centre=centre)

    def drifted(self, stride: Sequence[int]) -> Places:
        """Add the (stride − 1) / 2 cells by which a one-sided average over the stride moves a gradient."""
        return replace(self, drift=_pair(lambda a: self.drift[a] + (stride[a] - 1) / 2 * self.jump[a]))


def _pair(of_axis: Callable[[int], float]) -> Pair:
    return of_axis(0), of_axis(1)


def _even_scale(before: int, after: int) -> float:
    ratio = before / after
    return float(round(ratio)) if ratio >= 1 else 1 / round(1 / ratio)


def _mean(places: Sequence[Places]) -> Places:
    """Places where branches meet; in practice they agree, else the middle is the best single answer."""

    def mean(pairs: Iterable[Pair]) -> Pair:
        columns = list(zip(*pairs, strict=True))
        return sum(columns[0]) / len(places), sum(columns[1]) / len(places)

    first = places[0]
    return replace(first, centre=mean(p.centre for p in places), drift=mean(p.drift for p in places))


class PlaceFlow(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Carries `Places` from the inputs of every operation to its outputs."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        # Keyed by identity; the tensor is kept so that no other can take its place during the pass.
        self._known: dict[int, tuple[Tensor, Places]] = {}
        self._layer: tuple[Places | None, torch.Size] | None = None
        self.reductions: set[int] = {1}  # of all grids met; a single cell, as after pooling, is none

    def start(self, tensor: Tensor, places: Places) -> None:
        """Begin to follow what depends on a tensor."""
        self._known = {id(tensor): (tensor, places)}

    def restart(self, activation: Tensor) -> None:
        """Note the layer's places and follow, from here on, only what depends on it."""
        places = self.places_of(activation)
        self._layer = (places, activation.shape)
        self._known.clear()
        if places:
            self.start(activation, replace(places, drift=(0.0, 0.0), passed=frozenset()))

    def mark(self, output: object, name: str) -> None:
        """Note that whatever depends on this output has passed a strided convolution."""
        if places := self.places_of(output):
            assert isinstance(output, Tensor)
            self._known[id(output)] = (output, replace(places, passed=places.passed | {name}))

    def at_layer(self) -> tuple[Places | None, torch.Size]:
        """Return the places and the shape that `restart` has noted."""
        assert self._layer is not None  # spatial_output raises where the layer was not called
        return self._layer

    def places_of(self, value: object) -> Places | None:
        """Return the places of a tensor; None where they are not known."""
        known = self._known.get(id(value))
        return known[1] if known else None

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        inputs = [p for leaf in tree_leaves((args, kwargs)) if (p := self.places_of(leaf))]
        result = func(*args, **(kwargs or {}))
        if inputs:
            passed = frozenset[str]().union(*(places.passed for places in inputs))
            for output in tree_leaves(result):
                if isinstance(output, Tensor):
                    places = replace(_after(func, args, inputs, output), passed=passed)
                    self._known[id(output)] = (output, places)
                    if min(places.extent) > 1:
                        self.reductions.update(round(jump) for jump in places.jump if jump >= 1)
        return result


@contextmanager
def marked(convolutions: Mapping[str, nn.Module], flow: PlaceFlow) -> Iterator[None]:
    """Note inside a ``with`` block what passes these convolutions."""

    def hook(name: str) -> Callable[[nn.Module, Any, Any], None]:
        return lambda module, args, output: flow.mark(output, name)

    with ExitStack() as hooks:
        for name, convolution in convolutions.items():
            hooks.enter_context(convolution.register_forward_hook(hook(name)))
        yield


def _after(func: Any, args: tuple[Any, ...], inputs: list[Places], output: Tensor) -> Places:
    """Places of one operation's output."""
    rule = _RULES.get(func.overloadpacket.__name__)
    if rule and output.ndim == 4:
        return rule(inputs[0], args, (output.shape[2], output.shape[3]))
    extents = [
        tuple(output.shape[2:4]),
        tuple(output.shape[1:3]),
    ]  # (N, C, h, w), and (N, h, w, C) on the way
    agreeing = [p for p in inputs if p.extent in extents]
    if agreeing:
        return _mean(agreeing)
    largest = max(inputs, key=lambda p: p.extent)
    if output.ndim == 4 and min(output.shape[2:4]) > 1 and func.overloadpacket.__name__ != "permute":
        return largest.resized((output.shape[2], output.shape[3]))
    return largest


def _two(values: Sequence[int] | int) -> tuple[int, int]:
    pair = [values] if isinstance(values, int) else list(values)
    return (pair[0], pair[-1])


def _convolution(places: Places, args: tuple[Any, ...], extent: tuple[int, int]) -> Places:
    kernel, (stride, padding, dilation, transposed) = args[1].shape[2:4], args[3:7]
    stride, padding, dilation = _two(stride), _two(padding), _two(dilation)
    if not transposed:
        moved = places.drifted(stride) if max(stride) > 1 else places
        return moved.window(extent, kernel, stride, padding, dilation)
    jump = _pair(lambda a: places.jump[a] / stride[a])
    centre = _pair(lambda a: places.centre[a] - ((kernel[a] - 1) * dilation[a] / 2 - padding[a]) * jump[a])
    return replace(places, extent=extent, jump=jump, centre=centre)


def _pooling(places: Places, args: tuple[Any, ...], extent: tuple[int, int]) -> Places:
    kernel = _two(args[1])
    stride = _two(args[2]) if len(args) > 2 and args[2] else kernel
    padding = _two(args[3]) if len(args) > 3 else (0, 0)
    dilation = _two(args[4]) if len(args) > 4 and not isinstance(args[4], bool) else (1, 1)
    return places.window(extent, kernel, stride, padding, dilation)


def _padding(places: Places, args: tuple[Any, ...], extent: tuple[int, int]) -> Places:
    left, top = args[1][0], args[1][2] if len(args[1]) > 2 else 0
    return places.shifted(extent, (-top, -left))


def _slice(places: Places, args: tuple[Any, ...], extent: tuple[int, int]) -> Places:
    dim, start, step = args[1] % 4, args[2] if len(args) > 2 else 0, args[4] if len(args) > 4 else 1
    if dim < 2:
        return places
    length = places.extent[dim - 2]
    first = min(max((start or 0) + (length if (start or 0) < 0 else 0), 0), length)
    cut = places.shifted(extent, (first, 0) if dim == 2 else (0, first))
    return replace(cut, jump=_pair(lambda a: places.jump[a] * (step if a == dim - 2 else 1)))


_RULES: dict[str, Callable[[Places, tuple[Any, ...], tuple[int, int]], Places]] = {
    "convolution": _convolution,
    "max_pool2d_with_indices": _pooling,
    "avg_pool2d": _pooling,
    "constant_pad_nd": _padding,
    "reflection_pad2d": _padding,
    "replication_pad2d": _padding,
    "slice": _slice,
}
