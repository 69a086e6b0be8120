"""Building: timm's architectures, as large as their weights file and not larger.

A weights file may ask for any variant of an architecture (``model_args``). It is first built without memory,
on the meta device, and compared with the file; only a network whose parameters the file holds is built for
real.
"""

from __future__ import annotations

import math
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import timm
import torch
from torch import Tensor
from torch.nn.modules.module import (
    register_module_module_registration_hook,
    register_module_parameter_registration_hook,
)
from torch.utils._pytree import tree_leaves

from wsi_saliency.errors import ModelError
from wsi_saliency.messages import one_line
from wsi_saliency.models.wording import bytes_in_words, some

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from torch import nn

    from wsi_saliency.models.weights import Weights

# Whatever a file's model_args say, nothing else is loaded, neither from the network nor from disk.
_FIXED: Mapping[str, Any] = {"pretrained": False, "checkpoint_path": "", "pretrained_cfg": None}

# Arguments of timm.create_model that make something else than a classifier, or say how weights are loaded.
_REFUSED = frozenset(
    {"features_only", "out_indices", "feature_cfg", "feature_cls", "model_name", "scriptable", "exportable"}
    | {"no_jit", "pretrained_cfg_overlay", "pretrained_strict", "pretrained_filter_fn", "cache_dir"}
    | {"kwargs_filter", "device", "dtype"}
)
_LARGEST_ARGUMENT, _MOST_ARGUMENTS = 10_000, 1000  # a width or a depth; numbers in all
# What a network may have for each tensor of its file, and on top. None of timm's has more than 4.3 modules
# and parameters for each, nor, with the buffers that it computes, more than 1.7 bytes for each byte.
_PARTS = 8, 500
_BYTES = 4, 256 * 2**20


class _TooLarge(Exception):
    """A network grows beyond what its weights file can fill."""


def build_module(architecture: str, weights: Weights, classes: int | None, heads: Sequence[str]) -> nn.Module:
    """Build timm's architecture and load the weights into it, all of them.

    Parameters
    ----------
    architecture
        A name that timm knows.
    weights
        They say how it varies, too.
    classes
        Of its head; None leaves them to the architecture.
    heads
        Names of its last layers; a 1×1 convolution there and a linear layer are the same.

    Raises
    ------
    ModelError
        If timm cannot build it, or the weights do not fit it. That is found out before memory is taken.
    """
    _check_arguments(weights.description.model_args, weights.path)
    skeleton = _skeleton(architecture, weights, classes)
    if skeleton is not None:
        _check_bytes(skeleton, weights)
        _fitted(skeleton, weights, heads, architecture)
    most = math.inf if skeleton is not None else _allowed_bytes(weights)
    with _limited(weights, most):
        module = _create(architecture, weights, classes)
    try:
        module.load_state_dict(_fitted(module, weights, heads, architecture), strict=False)
    except RuntimeError as error:
        raise ModelError(f"{weights.path} does not fit {architecture} ({one_line(error)})") from error
    return module


def _check_arguments(arguments: Mapping[str, Any], path: Path) -> None:
    """Refuse arguments that do not describe a classifier, and numbers that only fill memory or time."""
    refused = sorted(_REFUSED & arguments.keys())
    if refused:
        raise ModelError(f"{path}: model_args must not hold {', '.join(refused)}; they make no classifier")
    if not _is_modest(arguments):
        raise ModelError(
            f"{path}: its model_args ask for more than any patch classifier has (numbers up to "
            f"{_LARGEST_ARGUMENT}, {_MOST_ARGUMENTS} of them)"
        )


def _is_modest(arguments: Mapping[str, Any]) -> bool:
    try:
        leaves = tree_leaves(dict(arguments))
    except RecursionError:
        return False
    numbers = [leaf for leaf in leaves if isinstance(leaf, int | float)]
    return len(leaves) <= _MOST_ARGUMENTS and all(abs(number) <= _LARGEST_ARGUMENT for number in numbers)


def _skeleton(architecture: str, weights: Weights, classes: int | None) -> nn.Module | None:
    """Build the architecture without memory; None where this version of timm cannot."""
    try:
        with _limited(weights), torch.device("meta"):
            return _create(architecture, weights, classes)
    except ModelError as error:
        if "meta" not in str(error.__cause__):  # it asks for a value, and there is none on the meta device
            raise
        return None


def _create(architecture: str, weights: Weights, classes: int | None) -> nn.Module:
    arguments = dict(weights.description.model_args)
    given = {**arguments, **_FIXED} | ({} if classes is None else {"num_classes": classes})
    try:
        module: nn.Module = timm.create_model(architecture, **given)
    except _TooLarge as error:
        raise ModelError(
            f"{weights.path} does not fit {architecture}: its {len(weights.state)} tensors are far too few; "
            "choose another --model timm:NAME"
        ) from error
    except Exception as error:  # arguments that nobody has thought of raise anything
        varied = f" with its model_args {one_line(str(arguments))}" if arguments else ""
        raise ModelError(
            f"{weights.path}: timm cannot build {architecture}{varied} ({one_line(error)})"
        ) from error
    return module


@contextmanager
def _limited(weights: Weights, most_bytes: float = math.inf) -> Iterator[None]:
    """Stop a network from growing far beyond its file: in modules and parameters, and in bytes.

    Raises
    ------
    _TooLarge
        In whatever is being built.
    """
    most_parts = _PARTS[0] * len(weights.state) + _PARTS[1]
    parts, size = 0, 0

    def count(module: nn.Module, name: str, part: nn.Module | Tensor | None) -> None:
        nonlocal parts, size
        parts += 1
        size += _bytes(part) if isinstance(part, Tensor) else 0
        if parts > most_parts or size > most_bytes:
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


def _check_bytes(skeleton: nn.Module, weights: Weights) -> None:
    needed = sum(_bytes(part) for part in (*skeleton.parameters(), *skeleton.buffers()))
    if needed > _allowed_bytes(weights):
        raise ModelError(
            f"{weights.path} describes a network of {bytes_in_words(needed)}, far larger than the file; "
            "choose another --model timm:NAME"
        )


def _fitted(
    module: nn.Module, weights: Weights, heads: Sequence[str], architecture: str
) -> dict[str, Tensor]:
    """Return the state as the module takes it, if it fits."""
    wanted, state = module.state_dict(), _with_linear_heads(weights.state, module.state_dict(), heads)
    # Only training reads BatchNorm's counter, and old files lack it.
    missing = [key for key in wanted if key not in state and not key.endswith(".num_batches_tracked")]
    unexpected = [key for key in state if key not in wanted]
    unlike = [
        f"{key} {tuple(state[key].shape)} for {tuple(wanted[key].shape)}"
        for key in wanted
        if key in state and state[key].shape != wanted[key].shape
    ]
    problems = {"missing": missing, "unexpected": unexpected, "of another shape": unlike}
    found = [f"{what} {some(keys)}" for what, keys in problems.items() if keys]
    if found:
        raise ModelError(
            f"{weights.path} does not fit {architecture}: {'; '.join(found)}; "
            "choose another --model timm:NAME"
        )
    return state


def _with_linear_heads(
    state: Mapping[str, Tensor], wanted: Mapping[str, Tensor], heads: Sequence[str]
) -> dict[str, Tensor]:
    """Reshape 1×1-convolution heads (K, C, 1, 1) to linear ones (K, C), or back, as the module wants."""
    fitted = dict(state)
    for key in (f"{head}.weight" for head in heads):
        if key in state and key in wanted and _core(state[key]) == _core(wanted[key]):
            fitted[key] = state[key].reshape(wanted[key].shape)
    return fitted


def _core(weight: Tensor) -> tuple[int, ...]:
    """Shape without the trailing 1×1."""
    shape = tuple(weight.shape)
    return shape[:2] if shape[2:] == (1, 1) else shape
