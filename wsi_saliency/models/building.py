"""Building: architectures of a library, as large as their weights file and not larger.

A weights file may ask for any variant of an architecture. It is first built without memory, on the meta
device, and compared with the file; only a network whose parameters the file holds is built for real.
"""

from __future__ import annotations

import math
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.modules.module import (
    register_module_module_registration_hook,
    register_module_parameter_registration_hook,
)

from wsi_saliency.errors import ModelError
from wsi_saliency.messages import bytes_in_words, one_line
from wsi_saliency.models.wording import some

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from torch import nn

    from wsi_saliency.models.weights import Weights

# What a network may have for each tensor of its file, and on top. None of timm's has more than 4.3 modules
# and parameters for each, nor, with the buffers that it computes, more than 1.7 bytes for each byte.
_PARTS = 8, 500
_BYTES = 4, 256 * 2**20
# Shapes that a file lacks before its network is another one: timm's EfficientNets try out up to four layers.
_STRANGE = 16


@dataclass(frozen=True)
class Blueprint:
    """How an architecture is built, and what it sees where its weights do not say.

    Parameters
    ----------
    library, name
        Whose architecture it is, and its name there.
    create
        Makes the network with random weights; its argument is the number of classes, None for the
        architecture's own.
    heads
        Names of its last layers; a 1×1 convolution there and a linear layer are the same.
    patch
        Side of a patch, pixels.
    mean, std
        Normalisation of pixel / 255, red, green, blue.
    varied
        How it differs from the architecture of that name, for a message.
    """

    library: str
    name: str
    create: Callable[[int | None], nn.Module]
    heads: tuple[str, ...]
    patch: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    varied: str = ""

    @property
    def another(self) -> str:
        """What to do where it does not fit, for a message."""
        return f"choose another --model {self.library}:NAME"


class _TooLarge(Exception):
    """A network grows beyond what its weights file can fill."""


def build_module(blueprint: Blueprint, weights: Weights, classes: int | None) -> nn.Module:
    """Build an architecture and load the weights into it, all of them.

    Parameters
    ----------
    blueprint
        How it is built.
    weights
        What fills it.
    classes
        Of its head; None leaves them to the architecture.

    Raises
    ------
    ModelError
        If it cannot be built, or the weights do not fit it. That is found out before memory is taken.
    """
    skeleton = _skeleton(blueprint, weights, classes)
    if skeleton is not None:
        _check_bytes(skeleton, weights, blueprint)
        _fitted(skeleton, weights, blueprint)
    most = math.inf if skeleton is not None else _allowed_bytes(weights)
    with _limited(weights, most):
        module = _create(blueprint, weights, classes)
    try:
        module.load_state_dict(_fitted(module, weights, blueprint), strict=False)
    except RuntimeError as error:
        raise ModelError(f"{weights.path} does not fit {blueprint.name} ({one_line(error)})") from error
    return module


def outline(blueprint: Blueprint, weights: Weights, classes: int | None) -> dict[str, Tensor] | None:
    """Return the state dict of an architecture, built on the meta device: names and shapes, no values.

    None where the weights lack most of its shapes, or this version of its library cannot do without memory.
    """
    shapes = frozenset(core_shape(value) for value in weights.state.values())
    try:
        with _limited(weights, shapes=shapes), torch.device("meta"):
            return _create(blueprint, weights, classes).state_dict()
    except ModelError:
        return None


def shape_fits(blueprint: Blueprint, weights: Weights, wanted: Mapping[str, Tensor]) -> bool:
    """Tell whether weights have all names and shapes that are ``wanted``, and no others."""
    return not misfits(wanted, _with_linear_heads(weights.state, wanted, blueprint.heads))


def _skeleton(blueprint: Blueprint, weights: Weights, classes: int | None) -> nn.Module | None:
    """Build the architecture without memory; None where this version of its library cannot."""
    try:
        with _limited(weights), torch.device("meta"):
            return _create(blueprint, weights, classes)
    except ModelError as error:
        if "meta" not in str(error.__cause__):  # it asks for a value, and there is none on the meta device
            raise
        return None


def _create(blueprint: Blueprint, weights: Weights, classes: int | None) -> nn.Module:
    try:
        return blueprint.create(classes)
    except _TooLarge as error:
        raise ModelError(
            f"{weights.path} does not fit {blueprint.name}: its {len(weights.state)} tensors are far too "
            f"few; {blueprint.another}"
        ) from error
    except Exception as error:  # arguments that nobody has thought of raise anything
        raise ModelError(
            f"{weights.path}: {blueprint.library} cannot build {blueprint.name}{blueprint.varied} "
            f"({one_line(error)})"
        ) from error


@contextmanager
def _limited(
    weights: Weights, most_bytes: float = math.inf, shapes: frozenset[tuple[int, ...]] | None = None
) -> Iterator[None]:
    """Stop a network from growing far beyond its file: in modules and parameters, in bytes, in shapes.

    Raises
    ------
    _TooLarge
        In whatever is being built.
    """
    most_parts = _PARTS[0] * len(weights.state) + _PARTS[1]
    parts, size, strange = 0, 0, 0

    def count(module: nn.Module, name: str, part: nn.Module | Tensor | None) -> None:
        nonlocal parts, size, strange
        parts += 1
        size += _bytes(part) if isinstance(part, Tensor) else 0
        strange += shapes is not None and isinstance(part, Tensor) and core_shape(part) not in shapes
        if parts > most_parts or size > most_bytes or strange > _STRANGE:
            raise _TooLarge

    with ExitStack() as hooks:
        hooks.enter_context(register_module_module_registration_hook(count))
        hooks.enter_context(register_module_parameter_registration_hook(count))
        yield


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _allowed_bytes(weights: Weights) -> int:
    in_float32 = sum(4 * value.numel() for value in weights.state.values())
    return _BYTES[0] * in_float32 + _BYTES[1]


def _check_bytes(skeleton: nn.Module, weights: Weights, blueprint: Blueprint) -> None:
    needed = sum(_bytes(part) for part in (*skeleton.parameters(), *skeleton.buffers()))
    if needed > _allowed_bytes(weights):
        raise ModelError(
            f"{weights.path} describes a network of {bytes_in_words(needed)}, far larger than the file; "
            f"{blueprint.another}"
        )


def _fitted(module: nn.Module, weights: Weights, blueprint: Blueprint) -> dict[str, Tensor]:
    """Return the state as the module takes it, if it fits."""
    wanted = module.state_dict()
    state = _with_linear_heads(weights.state, wanted, blueprint.heads)
    if found := misfits(wanted, state):
        raise ModelError(
            f"{weights.path} does not fit {blueprint.name}: {'; '.join(found)}; {blueprint.another}"
        )
    return state


def misfits(wanted: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> list[str]:
    """Say in what a state dict differs from the one that is wanted, in names and shapes."""
    # Only training reads BatchNorm's counter, and old files lack it.
    missing = [key for key in wanted if key not in state and not key.endswith(".num_batches_tracked")]
    unexpected = [key for key in state if key not in wanted]
    unlike = [
        f"{key} {tuple(state[key].shape)} for {tuple(wanted[key].shape)}"
        for key in wanted
        if key in state and state[key].shape != wanted[key].shape
    ]
    problems = {"missing": missing, "unexpected": unexpected, "of another shape": unlike}
    return [f"{what} {some(keys)}" for what, keys in problems.items() if keys]


def _with_linear_heads(
    state: Mapping[str, Tensor], wanted: Mapping[str, Tensor], heads: Sequence[str]
) -> dict[str, Tensor]:
    """Reshape 1×1-convolution heads (K, C, 1, 1) to linear ones (K, C), or back, as the module wants."""
    fitted = dict(state)
    for key in (f"{head}.weight" for head in heads):
        if key in state and key in wanted and core_shape(state[key]) == core_shape(wanted[key]):
            fitted[key] = state[key].reshape(wanted[key].shape)
    return fitted


def core_shape(weight: Tensor) -> tuple[int, ...]:
    """Return a shape without the trailing 1×1: that of a 1×1 convolution is that of a linear layer."""
    shape = tuple(weight.shape)
    return shape[:2] if shape[2:] == (1, 1) else shape
