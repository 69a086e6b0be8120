"""Layers of a network: finding them, their strided convolutions, and where their cells lie.

A cell of a hidden layer sits at a place of the input that follows from the strides, paddings and kernel
sizes before it, not from its share of the image: cell ``i`` of a layer reached through symmetric padding
is centred on input pixel ``reduction * i``, half a cell less half a pixel away from where an enlarged map
would draw it. `measure` lets these places flow through one forward pass, and so finds them for any network.
"""

from __future__ import annotations

import math
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from wsi_saliency.errors import ModelError
from wsi_saliency.saliency.places import Pair, PlaceFlow, Places, marked

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from wsi_saliency.saliency.tokens import Layout

INPUT = "input"
LAST = "last"
ORDER_LOST = "its cells lie in an order that is not known"


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
    return _named_stages(model) or _last_and_outermost(_used_grids(model, images))


def explainable_stages(model: nn.Module, images: Tensor) -> list[Stage]:
    """List the feature stages whose output has a grid of cells on which the logits depend, the finest first.

    Of a network whose stages all give something else, they are the outermost modules that give such a grid.
    A vision transformer that answers from its class token depends on no cell of its last block.

    Parameters
    ----------
    model
        The network, in eval mode.
    images
        Float tensor (N, 3, H, W) that fits the network; its values do not matter.
    """
    grids = _used_grids(model, images)
    named = [Stage(stage.name, grids[stage.name]) for stage in _named_stages(model) if stage.name in grids]
    return named or _last_and_outermost(grids)


def _named_stages(model: nn.Module) -> list[Stage]:
    info = getattr(model, "feature_info", None)
    rows = list(getattr(info, "info", info) or [])
    modules = dict(model.named_modules())
    return [Stage(row["module"], int(row["reduction"])) for row in rows if row.get("module") in modules]


@dataclass(frozen=True)
class _Grid:
    """The grid that a module gives: input pixels per cell, and how the cells lie in its output."""

    reduction: int
    layout: Layout


def _used_grids(model: nn.Module, images: Tensor) -> dict[str, int]:
    """Reductions of all modules that give a grid on whose cells the logits depend, in order of calls."""
    grids = _grids(model, images[:1])
    unused = _unused(model, {name: g.layout for name, g in grids.items() if g.layout.has_others}, images[:1])
    return {name: grid.reduction for name, grid in grids.items() if name not in unused}


def _grids(model: nn.Module, image: Tensor) -> dict[str, _Grid]:
    """Grids of all modules that are called once and give one of square cells, in order of calls."""
    found: dict[str, list[_Grid | None]] = {}
    flow = PlaceFlow()

    def note(name: str, output: object) -> None:
        places = flow.places_of(output)
        fits = isinstance(output, Tensor) and places and places.layout.is_of(output) and _is_even(places)
        found.setdefault(name, []).append(
            _Grid(round(places.jump[1]), places.layout) if places and fits else None
        )

    def hook(name: str) -> Callable[[nn.Module, Any, Any], None]:
        return lambda module, args, output: note(name, output)

    activation = image.detach().clone()
    with ExitStack() as hooks, torch.no_grad(), flow:
        flow.start(activation, Places.of_input(activation))
        for name, module in model.named_modules():
            if name:
                hooks.enter_context(module.register_forward_hook(hook(name)))
        model(activation)
    return {name: calls[0] for name, calls in found.items() if len(calls) == 1 and calls[0] is not None}


def _unused(model: nn.Module, layouts: Mapping[str, Layout], image: Tensor) -> set[str]:
    """Name the layers with other tokens than cells, on which the logits depend, but on no cell."""
    outputs: dict[str, Tensor] = {}

    def hook(name: str) -> Callable[[nn.Module, Any, Any], Tensor]:
        def cut(module: nn.Module, args: object, output: Tensor) -> Tensor:
            outputs[name] = output if output.requires_grad else output.detach().requires_grad_()
            return outputs[name].clone()  # what follows may work in place

        return cut

    if not layouts:
        return set()
    noise = torch.randn(image.shape, generator=torch.Generator().manual_seed(0)).to(image)
    with ExitStack() as hooks, torch.enable_grad():
        for name in layouts:
            hooks.enter_context(model.get_submodule(name).register_forward_hook(hook(name)))
        logits = model(noise)
    gradients = torch.autograd.grad(logits.square().sum(), list(outputs.values()), allow_unused=True)
    by_name = dict(zip(outputs, gradients, strict=True))
    return {name for name, g in by_name.items() if g is None or layouts[name].only_others_in(g)}


def _last_and_outermost(grids: Mapping[str, int]) -> list[Stage]:
    """Per reduction, the last called of the least nested modules."""
    best: dict[int, str] = {}
    for name, reduction in grids.items():
        if reduction not in best or name.count(".") <= best[reduction].count("."):
            best[reduction] = name
    return [Stage(name, reduction) for reduction, name in sorted(best.items())]


def _is_even(places: Places) -> bool:
    """Whether places are those of whole square cells."""
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
    return [f"{', '.join(others[:2])}{more}: no grid of cells is known there on which the logits depend"]


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
    layout
        How the cells lie in the layer's output.
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
    layout: Layout | None = None


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
        If the layer is not called, is called more than once, has no grid of cells, or its cells are not
        square and evenly spaced in whole input pixels.
    """
    flow = PlaceFlow()
    activation = images[:1].detach().clone()
    with torch.no_grad(), flow, marked(strided_convolutions(model), flow):
        flow.start(activation, Places.of_input(activation))
        output = _output_from(model, layer, activation, flow)
    at_layer, places = flow.at_layer()
    after = flow.places_of(output) or Places.of_input(activation)
    behind = tuple(name for name in strided_convolutions(model) if name in after.passed)
    geometry = _geometry(layer, at_layer, places, after.drift)
    return replace(geometry, strided_behind=behind, total_stride=math.lcm(*flow.reductions))


def layout_of(model: nn.Module, layer: str, images: Tensor) -> Layout:
    """Find how the cells of a layer lie in its output: (N, C, h, w), (N, h, w, C) or tokens.

    Parameters
    ----------
    model, layer, images
        As in `measure`.

    Raises
    ------
    ModelError
        If the layer is not called, is called more than once, or has no grid of cells.
    """
    flow = PlaceFlow()
    activation = images[:1].detach().clone()
    with torch.no_grad(), flow:
        flow.start(activation, Places.of_input(activation))
        _output_from(model, layer, activation, flow)
    return _on_grid(layer, *flow.at_layer()).layout


def _output_from(model: nn.Module, layer: str, activation: Tensor, flow: PlaceFlow) -> object:
    """Run a network; the flow notes where the layer's cells lie, and follows what depends on it."""
    if layer == INPUT:
        flow.restart(activation)
        return model(activation)
    with layer_output(model, layer, flow.restart):
        return model(activation)


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
    flow = PlaceFlow()
    activation = images[:1].detach().clone()
    with torch.no_grad(), flow:
        flow.start(activation, Places.of_input(activation))
        model(activation)
    return math.lcm(*flow.reductions)


def _on_grid(layer: str, output: Tensor, places: Places | None) -> Places:
    """Make sure that a layer's output, of one image, has a grid of cells."""
    if places is None or not places.layout.is_of(output):
        lost = places is not None and output.ndim > 2 and not places.layout.known
        why = f": {ORDER_LOST}" if lost else ""
        raise ModelError(
            f"the output of layer {layer!r}, {tuple(output.shape)}, has no spatial grid{why}; "
            "choose another --layer"
        )
    return places


def _geometry(layer: str, output: Tensor, places: Places | None, drift: Pair) -> LayerGeometry:
    places = _on_grid(layer, output, places)
    jump_y, jump_x = places.jump
    if not _is_even(places):
        raise ModelError(
            f"the cells of layer {layer!r} are {jump_x:g} × {jump_y:g} px; whole squares are needed"
        )
    return LayerGeometry(
        layer,
        channels=places.layout.grid(output).shape[1],
        cell_w=places.extent[1],
        cell_h=places.extent[0],
        reduction=round(jump_x),
        centre_x=places.centre[1],
        centre_y=places.centre[0],
        drift_x=drift[1],
        drift_y=drift[0],
        layout=places.layout,
    )


@contextmanager
def layer_output(model: nn.Module, layer: str, use: Callable[[Tensor], Tensor | None]) -> Iterator[None]:
    """Hand a layer's output to ``use``, which may return a tensor to go on with in its place.

    Raises
    ------
    ModelError
        On leaving, if the layer was not called; during the call, if it is called twice or its output is not
        a tensor that could have a grid of cells.
    """
    calls = 0

    def hook(module: nn.Module, args: object, output: object) -> Tensor | None:
        nonlocal calls
        calls += 1
        if calls > 1:
            raise ModelError(
                f"layer {layer!r} is called more than once in a forward pass; choose another --layer"
            )
        if not isinstance(output, Tensor) or output.ndim < 3 or output[0, 0].numel() < 2:
            raise ModelError(f"the output of layer {layer!r} has no spatial grid; choose an earlier --layer")
        return use(output)

    handle = model.get_submodule(layer).register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()
    if not calls:
        raise ModelError(f"layer {layer!r} is not called in the model's forward pass; choose another --layer")
