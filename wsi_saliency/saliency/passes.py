"""Passes through a network, seen from its layers: what is below them, and what is above.

Everything below the first layer runs without a graph. Everything above runs with one for the activations
only: no parameter gets a gradient. `LayerPass.again` runs the part above a layer once more with another
activation, without computing anything below.
"""

from __future__ import annotations

from collections import Counter
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from wsi_saliency.errors import ModelError
from wsi_saliency.models.classifier import standard_logits
from wsi_saliency.saliency.layers import INPUT, layer_output

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence


def forward_once(
    model: nn.Module, layers: Sequence[str], images: Tensor, from_here: Callable[[], object] | None = None
) -> tuple[dict[str, Tensor], Tensor]:
    """Run a network once; return the activations of some of its layers, and the logits that depend on them.

    Parameters
    ----------
    model
        Network in eval mode, with whatever smoothing method is active on it.
    layers
        Names of modules, or ``"input"``; the graph begins at the one that is reached first.
    images
        (N, 3, H, W) normalised floats on the model's device.
    from_here
        Called when the first layer is reached, before anything above it runs.

    Raises
    ------
    ModelError
        If a layer is not called, has no spatial grid, or the logits do not depend on any.
    """
    activations: dict[str, Tensor] = {}

    def cut_at(layer: str, output: Tensor) -> Tensor:
        torch.set_grad_enabled(True)  # until the block below ends
        first = not activations
        activations[layer] = output if output.requires_grad else output.detach().requires_grad_()
        if first and from_here is not None:
            from_here()
        return activations[layer].clone()  # what follows may work in place (ReLU), and must not on it

    with torch.no_grad(), ExitStack() as hooks:
        if INPUT in layers:
            images = cut_at(INPUT, images)
        for layer in layers:
            if layer != INPUT:
                hooks.enter_context(layer_output(model, layer, partial(cut_at, layer)))
        logits = standard_logits(model(images))
    if not logits.requires_grad:
        raise independent_of(layers[0])
    return activations, logits


def independent_of(layer: str, part: str = "") -> ModelError:
    """Say that the logits do not depend on a layer, or on a part of it."""
    where = f"{part} of layer" if part else "layer"
    return ModelError(f"the logits do not depend on {where} {layer!r}; choose another layer (--layer)")


class LayerPass:
    """Passes of some images through a network, of which the part above one layer can run again.

    Parameters
    ----------
    model
        Network in eval mode, with whatever smoothing method is active on it.
    layer
        Name of a module, or ``"input"``.
    images
        (N, 3, H, W) normalised floats on the model's device.
    """

    def __init__(self, model: nn.Module, layer: str, images: Tensor) -> None:
        self.model, self.layer, self.images = model, layer, images
        self._below: dict[nn.Module, list[Any]] = {}
        self._copied = False  # whether what is below is kept, and given, as copies

    def record(self) -> tuple[Tensor, Tensor]:
        """Run the network once without a graph, keeping what `again` needs; return activation and logits."""
        activations: list[Tensor] = []
        with torch.no_grad():
            if self.layer == INPUT:
                return self.images, standard_logits(self.model(self.images))
            with (
                _outputs_before(self.model, self.layer, copied=self._copied) as self._below,
                layer_output(self.model, self.layer, lambda a: activations.append(a.clone())),
            ):
                logits = standard_logits(self.model(self.images))
        return activations[0], logits

    def again(self, activation: Tensor) -> tuple[Tensor, Tensor]:
        """Run the part above the layer with another activation; `record` comes first.

        Parameters
        ----------
        activation
            As `record` returns it, of the same N as the images.

        Returns
        -------
        The activation as a leaf, and the logits that depend on it.
        """
        leaf = activation.detach().requires_grad_()
        if self.layer == INPUT:
            with torch.enable_grad():
                return leaf, standard_logits(self.model(leaf.clone()))
        before = self._versions()
        logits = self._above(leaf)
        if not self._copied and self._versions() != before:
            # Functions between the modules changed the kept outputs in place: keep copies of them instead.
            self._copied = True
            self.record()
            logits = self._above(leaf)
        return leaf, logits

    def _above(self, leaf: Tensor) -> Tensor:
        with (
            torch.enable_grad(),
            _recalled(self._below, copied=self._copied),
            layer_output(self.model, self.layer, lambda output: leaf.clone()),
        ):
            return standard_logits(self.model(self.images))

    def _versions(self) -> list[int]:
        return [
            t._version for kept in self._below.values() for t in tree_leaves(kept) if isinstance(t, Tensor)
        ]


@contextmanager
def _outputs_before(model: nn.Module, layer: str, *, copied: bool) -> Iterator[dict[nn.Module, list[Any]]]:
    """Collect the outputs of all modules called before the layer ends, by module, in the order of calls.

    Of nested modules only the outermost that ended before the layer did is kept; those around the layer
    itself are still running then and are not.
    """
    outputs: dict[nn.Module, list[Any]] = {}
    ended: list[tuple[nn.Module, Any, int]] = []  # module, output, how many ended before it began
    begun: list[int] = []
    reached = False

    def begin(module: nn.Module, args: object) -> None:
        begun.append(len(ended))

    def end(module: nn.Module, args: object, output: object) -> None:
        nonlocal reached
        before = begun.pop()
        if reached:
            return
        del ended[before:]  # what ran inside it
        ended.append((module, _copy(output) if copied else output, before))
        if module is target:
            reached = True
            for ended_module, kept, _ in ended:
                outputs.setdefault(ended_module, []).append(kept)

    target = model.get_submodule(layer)
    with ExitStack() as hooks:
        for module in model.modules():
            hooks.enter_context(module.register_forward_pre_hook(begin, prepend=True))
            hooks.enter_context(module.register_forward_hook(end))
        yield outputs


def _copy(output: Any) -> Any:
    return tree_map(lambda t: t.clone() if isinstance(t, Tensor) else t, output)


@contextmanager
def _recalled(outputs: dict[nn.Module, list[Any]], *, copied: bool) -> Iterator[None]:
    """Let modules give their kept outputs on their first calls in place of computing them."""
    calls: Counter[nn.Module] = Counter()

    def recall(module: nn.Module) -> Callable[..., Any]:
        compute = module.forward

        def forward(*args: Any, **kwargs: Any) -> Any:
            i, kept = calls[module], outputs[module]
            calls[module] += 1
            if i >= len(kept):
                return compute(*args, **kwargs)
            return _copy(kept[i]) if copied else kept[i]

        return forward

    own = {module: module.__dict__.get("forward") for module in outputs}
    try:
        for module in outputs:
            module.__dict__["forward"] = recall(module)
        yield
    finally:
        for module, forward in own.items():
            if forward is None:
                del module.__dict__["forward"]
            else:
                module.__dict__["forward"] = forward
