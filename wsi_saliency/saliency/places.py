"""Places: where the cells of every tensor of a forward pass lie in the network's input.

They flow through one forward pass, operation by operation, and are so found for any network: asymmetric
"same" padding, pooling and branches included.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from wsi_saliency.saliency.tokens import Layout

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

Pair = tuple[float, float]  # (y, x), as in a tensor's shape


@dataclass(frozen=True)
class Places:
    """Where the cells of one tensor lie: (y, x) pairs in input pixels; ``layout`` says which they are.

    ``passed`` names the strided convolutions on any way to the tensor.
    """

    layout: Layout
    jump: Pair
    centre: Pair
    drift: Pair = (0.0, 0.0)
    passed: frozenset[str] = frozenset()

    @classmethod
    def of_input(cls, images: Tensor) -> Places:
        """Return the places of the pixels of images (N, 3, H, W)."""
        return cls(Layout((images.shape[2], images.shape[3])), (1.0, 1.0), (0.5, 0.5))

    @property
    def extent(self) -> tuple[int, int]:
        """Cells in a column and in a row."""
        return self.layout.extent

    def at(self, extent: tuple[int, int], jump: Pair, centre: Pair) -> Places:
        """Return other places with the same past."""
        layout = replace(self.layout, extent=extent, before=0, after=0, known=True)
        return replace(self, layout=layout, jump=jump, centre=centre)

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
        return self.at(extent, _pair(lambda a: self.jump[a] * stride[a]), centre)

    def shifted(self, extent: tuple[int, int], cells: Pair) -> Places:
        """Places after ``cells`` cells were cut off (or, negative, put) in front."""
        return self.at(extent, self.jump, _pair(lambda a: self.centre[a] + cells[a] * self.jump[a]))

    def resized(self, extent: tuple[int, int]) -> Places:
        """Places after an operation known only by its output's size: padding, or an even resampling."""
        scale = _pair(lambda a: _even_scale(self.extent[a], extent[a]))
        crop = _pair(lambda a: (self.extent[a] - extent[a] * scale[a]) / 2)
        centre = _pair(lambda a: self.centre[a] + (crop[a] + scale[a] / 2 - 0.5) * self.jump[a])
        return self.at(extent, _pair(lambda a: self.jump[a] * scale[a]), centre)

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
        self._layer: tuple[Tensor, Places | None] | None = None
        self.reductions: set[int] = {1}  # of all grids met; a single cell, as after pooling, is none

    def start(self, tensor: Tensor, places: Places) -> None:
        """Begin to follow what depends on a tensor."""
        self._known = {id(tensor): (tensor, places)}

    def restart(self, activation: Tensor) -> None:
        """Note the layer's places and follow, from here on, only what depends on it."""
        places = self.places_of(activation)
        self._layer = (activation, places)
        self._known.clear()
        if places:
            self.start(activation, replace(places, drift=(0.0, 0.0), passed=frozenset()))

    def mark(self, output: object, name: str) -> None:
        """Note that whatever depends on this output has passed a strided convolution."""
        if places := self.places_of(output):
            assert isinstance(output, Tensor)
            self._known[id(output)] = (output, replace(places, passed=places.passed | {name}))

    def at_layer(self) -> tuple[Tensor, Places | None]:
        """Return the activation that `restart` was given, and its places."""
        assert self._layer is not None  # layer_output raises where the layer was not called
        return self._layer

    def places_of(self, value: object) -> Places | None:
        """Return the places of a tensor; None where they are not known."""
        known = self._known.get(id(value))
        return known[1] if known else None

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        leaves = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        inputs = [(leaf, p) for leaf in leaves if (p := self.places_of(leaf))]
        result = func(*args, **(kwargs or {}))
        if inputs:
            passed = frozenset[str]().union(*(places.passed for _, places in inputs))
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


def _after(func: Any, args: tuple[Any, ...], inputs: list[tuple[Tensor, Places]], output: Tensor) -> Places:
    """Places of one operation's output."""
    name, (tensor, places) = func.overloadpacket.__name__, inputs[0]
    first, shape = _channels_first(tensor, places), output.shape
    if name in _WINDOWS and first and output.ndim == 4:
        return _WINDOWS[name](first, args, (shape[2], shape[3]))
    if name in _CUTS and places.layout.fits(tensor.shape):
        return _cut(places, args[1:], output, _CUTS[name])
    if name in _MOVED and places.layout.fits(tensor.shape):
        return replace(places, layout=_MOVED[name](places.layout, args, tensor, output))
    if name == "cat" and (joined := _with_tokens(args, inputs, output)):
        return joined
    agreeing = [replace(p, layout=found) for _, p in inputs if (found := p.layout.found_in(shape))]
    if agreeing:
        return _mean(agreeing)
    largest = max((p for _, p in inputs), key=lambda p: p.extent)
    is_view = name in _VIEWS
    return largest if name in _MOVED and not is_view else _resampled(largest, output, is_view=is_view)


def _channels_first(tensor: Tensor, places: Places) -> Places | None:
    """Places of a tensor that an operation takes as (N, C, h, w)."""
    layout = replace(places.layout, axes=(2, 3))
    return replace(places, layout=layout) if layout.fits(tensor.shape) else None


def _resampled(places: Places, output: Tensor, *, is_view: bool) -> Places:
    """Places after an operation that is not known, if its output has rows and columns; else as before."""
    axes = places.layout.axes
    if len(axes) < 2 or output.ndim != 4 or 0 in axes or max(axes) > 3 or output.shape[0] != 1:
        return places
    extent = output.shape[axes[0]], output.shape[axes[1]]
    by = [before // after for before, after in zip(places.extent, extent, strict=True) if before % after == 0]
    if min(extent) == 1 or (is_view and (len(by) < 2 or by[0] != by[1])):
        return places
    return places.resized(extent)


def _with_tokens(args: tuple[Any, ...], inputs: list[tuple[Tensor, Places]], output: Tensor) -> Places | None:
    """Places after tokens that are no cells were put before and behind those that are."""
    tensors, axis = args[0], (args[1] if len(args) > 1 else 0) % output.ndim
    cells = [(t, p) for t, p in inputs if p.layout.axes == (axis,) and p.layout.fits(t.shape)]
    if len(cells) != 1:
        return None
    tensor, places = cells[0]
    i = next(i for i, t in enumerate(tensors) if t is tensor)
    front = sum(t.shape[axis] for t in tensors[:i])
    return replace(places, layout=places.layout.cut(-front, output.shape[axis]))


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
    return places.at(extent, jump, centre)


def _pooling(places: Places, args: tuple[Any, ...], extent: tuple[int, int]) -> Places:
    kernel = _two(args[1])
    stride = _two(args[2]) if len(args) > 2 and args[2] else kernel
    padding = _two(args[3]) if len(args) > 3 else (0, 0)
    dilation = _two(args[4]) if len(args) > 4 and not isinstance(args[4], bool) else (1, 1)
    return places.window(extent, kernel, stride, padding, dilation)


def _cut(places: Places, args: Sequence[Any], output: Tensor, how: _Cut) -> Places:
    """Places after something was cut off or put in front, along any axes."""
    layout, shape = places.layout, output.shape
    cuts = [how(axis, output.ndim, size, args) for axis, size in zip(layout.axes, layout.sizes, strict=True)]
    if len(cuts) == 1:
        start, step = cuts[0]
        cut = layout.cut(start, shape[layout.axes[0]]) if step == 1 else replace(layout, known=False)
        return replace(places, layout=cut)
    (top, down), (left, right) = cuts
    moved = places.shifted((shape[layout.axes[0]], shape[layout.axes[1]]), (top, left))
    return replace(moved, jump=(places.jump[0] * down, places.jump[1] * right))


def _padding(axis: int, axes: int, size: int, args: Sequence[Any]) -> tuple[int, int]:
    """Return how much is cut off in front along an axis, negative for padding, and the step: 1."""
    pads, at = args[0], 2 * (axes - 1 - axis)  # the last axis comes first
    return (-pads[at] if at < len(pads) else 0), 1


def _slice(axis: int, axes: int, size: int, args: Sequence[Any]) -> tuple[int, int]:
    """Return how much is cut off in front along an axis, and the step."""
    dim, start, step = (args[0] if args else 0) % axes, args[1] if len(args) > 1 else 0, args[3:]
    if dim != axis:
        return 0, 1
    return min(max((start or 0) + (size if (start or 0) < 0 else 0), 0), size), step[0] if step else 1


def _permuted(layout: Layout, args: tuple[Any, ...], tensor: Tensor, output: Tensor) -> Layout:
    return layout.permuted(args[1])


def _transposed(layout: Layout, args: tuple[Any, ...], tensor: Tensor, output: Tensor) -> Layout:
    order = list(range(tensor.ndim))
    one, other = args[1:3] if len(args) > 2 else (0, 1)
    order[one], order[other] = order[other], order[one]
    return layout.permuted(order)


def _viewed(layout: Layout, args: tuple[Any, ...], tensor: Tensor, output: Tensor) -> Layout:
    return layout.viewed(tensor.shape, output.shape)


def _selected(layout: Layout, args: tuple[Any, ...], tensor: Tensor, output: Tensor) -> Layout:
    return layout.without((args[1] if len(args) > 1 else 0) % tensor.ndim)


_Cut = Callable[[int, int, int, "Sequence[Any]"], tuple[int, int]]
_Move = Callable[[Layout, tuple[Any, ...], Tensor, Tensor], Layout]
_WINDOWS: dict[str, Callable[[Places, tuple[Any, ...], tuple[int, int]], Places]] = {
    "convolution": _convolution,
    "max_pool2d_with_indices": _pooling,
    "avg_pool2d": _pooling,
}
_CUTS: dict[str, _Cut] = {
    "constant_pad_nd": _padding,
    "reflection_pad2d": _padding,
    "replication_pad2d": _padding,
    "slice": _slice,
}
_VIEWS = ("view", "_unsafe_view", "_reshape_alias", "reshape", "unsqueeze", "squeeze")
_MOVED: dict[str, _Move] = dict.fromkeys(_VIEWS, _viewed) | {
    "permute": _permuted,
    "transpose": _transposed,
    "t": _transposed,
    "select": _selected,
    "unbind": _selected,
}
