"""Layers of a network: finding them, their strided convolutions, and where their cells lie.

A cell of a hidden layer sits at a place of the input that follows from the strides, paddings and kernel
sizes before it, not from its share of the image: cell ``i`` of a layer reached through symmetric padding
is centred on input pixel ``reduction * i``, half a cell less half a pixel away from where an enlarged map
would draw it. `measure` lets these places flow through one forward pass, operation by operation, and so
finds them for any network, asymmetric "same" padding, pooling and branches included.
"""

from __future__ import annotations

import math
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from wsi_saliency.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

INPUT = "input"
LAST = "last"
NO_TOKENS = "layers of tokens, as in vision transformers, are not supported yet"


def strided_convolutions(model: nn.Module) -> dict[str, nn.Conv2d]:
    """Return all 2-D convolutions with a stride above one by name, in module order, the stem first."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Conv2d) and max(module.stride) > 1
    }


def strided_behind_stem(model: nn.Module) -> dict[str, nn.Conv2d]:
    """Return all of `strided_convolutions` but the first."""
    return dict(list(strided_convolutions(model).items())[1:])


@dataclass(frozen=True)
class Stage:
    """A feature stage: its module's name and how many input pixels one of its cells stands for."""

    name: str
    reduction: int


def feature_stages(model: nn.Module, images: Tensor) -> list[Stage]:
    """List the feature stages of a network, the finest first, whether they can be explained or not.

    timm's networks name theirs (``feature_info``); elsewhere they are the outermost modules whose output
    has a spatial grid, in the order in which they are called.

    Parameters
    ----------
    model
        The network, in eval mode.
    images
        Float tensor (N, 3, H, W) to call the network with where it does not name its stages.
    """
    return _named_stages(model) or _last_and_outermost(_grids(model, images))


def explainable_stages(model: nn.Module, images: Tensor) -> list[Stage]:
    """List the feature stages whose output has a grid of cells, the finest first.

    Of a network whose stages all give something else (the tokens of a vision transformer, say), they are the
    outermost modules that give such a grid.

    Parameters
    ----------
    model
        The network, in eval mode.
    images
        Float tensor (N, 3, H, W) that fits the network; its values do not matter.
    """
    grids = _grids(model, images)
    named = [Stage(stage.name, grids[stage.name]) for stage in _named_stages(model) if stage.name in grids]
    return named or _last_and_outermost(grids)


def _named_stages(model: nn.Module) -> list[Stage]:
    info = getattr(model, "feature_info", None)
    rows = list(getattr(info, "info", info) or [])
    modules = dict(model.named_modules())
    return [Stage(row["module"], int(row["reduction"])) for row in rows if row.get("module") in modules]


def _grids(model: nn.Module, images: Tensor) -> dict[str, int]:
    """Reductions of all modules that are called once and give a grid of square cells, in order of calls."""
    found: dict[str, list[int | None]] = {}
    flow = _PlaceFlow()

    def note(name: str, output: object) -> None:
        places = flow.places_of(output)
        fits = isinstance(output, Tensor) and _has_grid(output) and _is_even(places, output.shape)
        found.setdefault(name, []).append(round(places.jump[1]) if places and fits else None)

    def hook(name: str) -> Callable[[nn.Module, Any, Any], None]:
        return lambda module, args, output: note(name, output)

    activation = images.detach().clone()
    with ExitStack() as hooks, torch.no_grad(), flow:
        flow.start(activation, _Places.of_input(activation))
        for name, module in model.named_modules():
            if name:
                hooks.enter_context(module.register_forward_hook(hook(name)))
        model(activation)
    return {name: calls[0] for name, calls in found.items() if len(calls) == 1 and calls[0] is not None}


def _last_and_outermost(grids: Mapping[str, int]) -> list[Stage]:
    """Per reduction, the last called of the least nested modules."""
    best: dict[int, str] = {}
    for name, reduction in grids.items():
        if reduction not in best or name.count(".") <= best[reduction].count("."):
            best[reduction] = name
    return [Stage(name, reduction) for reduction, name in sorted(best.items())]


def _has_grid(output: Tensor) -> bool:
    return output.ndim == 4 and output.shape[2] * output.shape[3] > 1


def _is_even(places: _Places | None, shape: torch.Size) -> bool:
    """Whether places are those of whole square cells, in (N, C, h, w) order."""
    if places is None or places.extent != tuple(shape[2:]):
        return False
    return places.jump[0] == places.jump[1] and math.isclose(places.jump[1], round(places.jump[1]))


def find_layer(model: nn.Module, layer: str | int | nn.Module, images: Tensor) -> str:
    """Return the name of a layer: a module of ``model``, or ``"input"``.

    Parameters
    ----------
    model
        The network.
    layer
        A module, its dotted name, a reduction (``8``, or ``"8"`` where no module is called so: the last
        feature stage at 1/8 of the input's resolution), ``"last"`` (the last stage), or ``"input"``.
    images
        Float tensor (N, 3, H, W) that fits the network; used where stages have to be found by calling it.

    Raises
    ------
    ModelError
        If there is no such layer; the message lists the feature stages.
    """
    modules = dict(model.named_modules())
    if isinstance(layer, nn.Module):
        names = [name for name, module in modules.items() if module is layer]
        if not names:
            raise ModelError("the layer is not a module of the model")
        return str(names[0])
    text = str(layer)
    if text == INPUT or (isinstance(layer, str) and text and text in modules):
        return text
    stages = explainable_stages(model, images)
    if text == LAST and stages:
        return stages[-1].name
    if text.isdecimal():
        matching = [stage.name for stage in stages if stage.reduction == int(text)]
        if matching:
            return matching[-1]
    raise ModelError(_no_such_layer(model, text, stages))


def _no_such_layer(model: nn.Module, text: str, stages: Sequence[Stage]) -> str:
    """Say what is missing, and which layers there are instead."""
    if text.isdecimal():
        missing = f"no stage of the model lies at 1/{text} of the patch's resolution ({text} is a reduction)"
    else:
        missing = f"no layer {text!r} in the model"
    listed = ", ".join([f"{stage.name} (1/{stage.reduction})" for stage in stages] or ["no stage"])
    takes = f"--layer takes a module name, a reduction, last or input: {listed}"
    return "; ".join([missing, takes, *note_on_other_stages(model, stages)])


def note_on_other_stages(model: nn.Module, explainable: Sequence[Stage]) -> list[str]:
    """Say which of the stages that a network names cannot be explained: one line, or none."""
    names = {stage.name for stage in explainable}
    others = [stage.name for stage in _named_stages(model) if stage.name not in names]
    if not others:
        return []
    more = f" and {len(others) - 2} more" if len(others) > 2 else ""
    return [f"{', '.join(others[:2])}{more} give no grid of cells (N, C, h, w); {NO_TOKENS}"]


@dataclass(frozen=True)
class LayerGeometry:
    """What a layer's map looks like and where its cells lie in the network's input.

    Parameters
    ----------
    name
        Module name, or ``"input"``.
    channels, cell_w, cell_h
        Shape of the layer's activation for the measured input.
    reduction
        Input pixels per cell.
    centre_x, centre_y
        Middle of cell 0 in input pixels, pixel ``i`` covering ``[i, i + 1)``.
    drift_x, drift_y
        Input pixels by which one-sided averaging of the gradient at every strided convolution behind the
        layer moves the gradient towards higher indices.
    strided_behind
        Names of the strided convolutions behind the layer: those on the way from its output to the logits.
    total_stride
        Input pixels by which a picture has to move for the network to see the same (see `total_stride`).
    """

    name: str
    channels: int
    cell_w: int
    cell_h: int
    reduction: int
    centre_x: float
    centre_y: float
    drift_x: float
    drift_y: float
    strided_behind: tuple[str, ...] = ()
    total_stride: int = 1


def measure(model: nn.Module, layer: str, images: Tensor) -> LayerGeometry:
    """Measure the geometry of a layer in one forward pass.

    Parameters
    ----------
    model
        The network, in eval mode; a forward method that is active on it is measured with it.
    layer
        Name as `find_layer` returns it.
    images
        Float tensor (N, 3, H, W) that fits the network; its values do not matter.

    Raises
    ------
    ModelError
        If the layer is not called, is called more than once, has no (N, C, h, w) grid, or its cells are not
        square and evenly spaced in whole input pixels.
    """
    flow = _PlaceFlow()
    places: _Places | None
    activation = images.detach().clone()
    with torch.no_grad(), flow, _marked(strided_convolutions(model), flow):
        flow.start(activation, _Places.of_input(activation))
        if layer == INPUT:
            output = model(activation)
            places, shape = _Places.of_input(activation), activation.shape
        else:
            with spatial_output(model, layer, lambda a: flow.restart(a)):
                output = model(activation)
            places, shape = flow.at_layer()
    after = flow.places_of(output) or _Places.of_input(activation)
    behind = tuple(name for name in strided_convolutions(model) if name in after.passed)
    geometry = _geometry(layer, places, shape, after.drift)
    return replace(geometry, strided_behind=behind, total_stride=math.lcm(*flow.reductions))


def total_stride(model: nn.Module, images: Tensor) -> int:
    """Return by how many pixels a picture has to move for a network to see the same, but for the border.

    That is the least common multiple of the reductions of all grids on the way, mostly that of the last:
    32 where five layers halve the resolution. A picture moved by less falls otherwise on some of the strides.

    Parameters
    ----------
    model
        The network, in eval mode.
    images
        Float tensor (N, 3, H, W) that fits the network; its values do not matter.
    """
    flow = _PlaceFlow()
    activation = images.detach().clone()
    with torch.no_grad(), flow:
        flow.start(activation, _Places.of_input(activation))
        model(activation)
    return math.lcm(*flow.reductions)


def _geometry(layer: str, places: _Places | None, shape: torch.Size, drift: _Pair) -> LayerGeometry:
    if places is None or places.extent != tuple(shape[2:]):
        raise ModelError(f"layer {layer!r} has no spatial grid in (N, C, h, w) order; choose another --layer")
    jump_y, jump_x = places.jump
    if jump_x != jump_y or not math.isclose(jump_x, round(jump_x)):
        raise ModelError(
            f"the cells of layer {layer!r} are {jump_x:g} × {jump_y:g} px; whole squares are needed"
        )
    return LayerGeometry(
        layer,
        channels=shape[1],
        cell_w=shape[3],
        cell_h=shape[2],
        reduction=round(jump_x),
        centre_x=places.centre[1],
        centre_y=places.centre[0],
        drift_x=drift[1],
        drift_y=drift[0],
    )


@contextmanager
def spatial_output(model: nn.Module, layer: str, use: Callable[[Tensor], Tensor | None]) -> Iterator[None]:
    """Hand a layer's output to ``use``, which may return a tensor to go on with in its place.

    Raises
    ------
    ModelError
        On leaving, if the layer was not called; during the call, if it is called twice or its output is not
        a tensor (N, C, h, w).
    """
    calls = 0

    def hook(module: nn.Module, args: object, output: object) -> Tensor | None:
        nonlocal calls
        calls += 1
        if calls > 1:
            raise ModelError(
                f"layer {layer!r} is called more than once in a forward pass; choose another --layer"
            )
        if isinstance(output, Tensor) and output.ndim == 3:
            raise ModelError(
                f"the output of layer {layer!r} has no spatial grid, it is {tuple(output.shape)}: "
                f"{NO_TOKENS}; choose --layer input"
            )
        if not isinstance(output, Tensor) or not _has_grid(output):
            raise ModelError(f"the output of layer {layer!r} has no spatial grid; choose an earlier --layer")
        return use(output)

    handle = model.get_submodule(layer).register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()
    if not calls:
        raise ModelError(f"layer {layer!r} is not called in the model's forward pass; choose another --layer")


# -- places flowing through a forward pass ---------------------------------------------------------------

_Pair = tuple[float, float]  # (y, x), as in a tensor's shape


@dataclass(frozen=True)
class _Places:
    """Where the cells of one tensor lie: (y, x) pairs in input pixels; ``extent`` counts its cells.

    ``passed`` names the strided convolutions on any way to the tensor.
    """

    extent: tuple[int, int]
    jump: _Pair
    centre: _Pair
    drift: _Pair = (0.0, 0.0)
    passed: frozenset[str] = frozenset()

    @classmethod
    def of_input(cls, images: Tensor) -> _Places:
        return cls((images.shape[2], images.shape[3]), (1.0, 1.0), (0.5, 0.5))

    def window(
        self,
        extent: tuple[int, int],
        kernel: Sequence[int],
        stride: Sequence[int],
        padding: Sequence[int],
        dilation: Sequence[int],
    ) -> _Places:
        """Places after a sliding window."""
        centre = _pair(
            lambda a: self.centre[a] + ((kernel[a] - 1) * dilation[a] / 2 - padding[a]) * self.jump[a]
        )
        return replace(self, extent=extent, jump=_pair(lambda a: self.jump[a] * stride[a]), centre=centre)

    def shifted(self, extent: tuple[int, int], cells: _Pair) -> _Places:
        """Places after ``cells`` cells were cut off (or, negative, put) in front."""
        return replace(self, extent=extent, centre=_pair(lambda a: self.centre[a] + cells[a] * self.jump[a]))

    def resized(self, extent: tuple[int, int]) -> _Places:
        """Places after an operation known only by its output's size: padding, or an even resampling."""
        scale = _pair(lambda a: _even_scale(self.extent[a], extent[a]))
        crop = _pair(lambda a: (self.extent[a] - extent[a] * scale[a]) / 2)
        centre = _pair(lambda a: self.centre[a] + (crop[a] + scale[a] / 2 - 0.5) * self.jump[a])
        return replace(self, extent=extent, jump=_pair(lambda a: self.jump[a] * scale[a]), centre=centre)

    def drifted(self, stride: Sequence[int]) -> _Places:
        """Add the (stride − 1) / 2 cells by which a one-sided average over the stride moves a gradient."""
        return replace(self, drift=_pair(lambda a: self.drift[a] + (stride[a] - 1) / 2 * self.jump[a]))


def _pair(of_axis: Callable[[int], float]) -> _Pair:
    return of_axis(0), of_axis(1)


def _even_scale(before: int, after: int) -> float:
    ratio = before / after
    return float(round(ratio)) if ratio >= 1 else 1 / round(1 / ratio)


def _mean(places: Sequence[_Places]) -> _Places:
    """Places where branches meet; in practice they agree, else the middle is the best single answer."""

    def mean(pairs: Iterable[_Pair]) -> _Pair:
        columns = list(zip(*pairs, strict=True))
        return sum(columns[0]) / len(places), sum(columns[1]) / len(places)

    first = places[0]
    return replace(first, centre=mean(p.centre for p in places), drift=mean(p.drift for p in places))


class _PlaceFlow(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Carries `_Places` from the inputs of every operation to its outputs."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        # Keyed by identity; the tensor is kept so that no other can take its place during the pass.
        self._known: dict[int, tuple[Tensor, _Places]] = {}
        self._layer: tuple[_Places | None, torch.Size] | None = None
        self.reductions: set[int] = {1}  # of all grids met; a single cell, as after pooling, is none

    def start(self, tensor: Tensor, places: _Places) -> None:
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

    def at_layer(self) -> tuple[_Places | None, torch.Size]:
        assert self._layer is not None  # spatial_output raises where the layer was not called
        return self._layer

    def places_of(self, value: object) -> _Places | None:
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
def _marked(convolutions: Mapping[str, nn.Module], flow: _PlaceFlow) -> Iterator[None]:
    def hook(name: str) -> Callable[[nn.Module, Any, Any], None]:
        return lambda module, args, output: flow.mark(output, name)

    with ExitStack() as hooks:
        for name, convolution in convolutions.items():
            hooks.enter_context(convolution.register_forward_hook(hook(name)))
        yield


def _after(func: Any, args: tuple[Any, ...], inputs: list[_Places], output: Tensor) -> _Places:
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


def _convolution(places: _Places, args: tuple[Any, ...], extent: tuple[int, int]) -> _Places:
    kernel, (stride, padding, dilation, transposed) = args[1].shape[2:4], args[3:7]
    stride, padding, dilation = _two(stride), _two(padding), _two(dilation)
    if not transposed:
        moved = places.drifted(stride) if max(stride) > 1 else places
        return moved.window(extent, kernel, stride, padding, dilation)
    jump = _pair(lambda a: places.jump[a] / stride[a])
    centre = _pair(lambda a: places.centre[a] - ((kernel[a] - 1) * dilation[a] / 2 - padding[a]) * jump[a])
    return replace(places, extent=extent, jump=jump, centre=centre)


def _pooling(places: _Places, args: tuple[Any, ...], extent: tuple[int, int]) -> _Places:
    kernel = _two(args[1])
    stride = _two(args[2]) if len(args) > 2 and args[2] else kernel
    padding = _two(args[3]) if len(args) > 3 else (0, 0)
    dilation = _two(args[4]) if len(args) > 4 and not isinstance(args[4], bool) else (1, 1)
    return places.window(extent, kernel, stride, padding, dilation)


def _padding(places: _Places, args: tuple[Any, ...], extent: tuple[int, int]) -> _Places:
    left, top = args[1][0], args[1][2] if len(args[1]) > 2 else 0
    return places.shifted(extent, (-top, -left))


def _slice(places: _Places, args: tuple[Any, ...], extent: tuple[int, int]) -> _Places:
    dim, start, step = args[1] % 4, args[2] if len(args) > 2 else 0, args[4] if len(args) > 4 else 1
    if dim < 2:
        return places
    length = places.extent[dim - 2]
    first = min(max((start or 0) + (length if (start or 0) < 0 else 0), 0), length)
    cut = places.shifted(extent, (first, 0) if dim == 2 else (0, first))
    return replace(cut, jump=_pair(lambda a: places.jump[a] * (step if a == dim - 2 else 1)))


_RULES: dict[str, Callable[[_Places, tuple[Any, ...], tuple[int, int]], _Places]] = {
    "convolution": _convolution,
    "max_pool2d_with_indices": _pooling,
    "avg_pool2d": _pooling,
    "constant_pad_nd": _padding,
    "reflection_pad2d": _padding,
    "replication_pad2d": _padding,
    "slice": _slice,
}
