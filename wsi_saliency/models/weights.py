"""Reading weights files: safetensors, and PyTorch files without running any code of theirs.

A safetensors file may describe its model in its metadata; all values are strings:

=================  ==================================================================================
``architecture``   name in timm, e.g. ``resnet18``
``model_args``     JSON object, further arguments of ``timm.create_model`` (a narrow variant, say)
``patch``          side of a patch, pixels
``mpp``            µm per pixel it was trained at
``mean``, ``std``  JSON list of three, normalisation of pixel / 255
``class_names``    JSON list, one name per logit
``note``           what a user should be told once
=================  ==================================================================================
"""

from __future__ import annotations

import hashlib
import json
import math
import pickle
import re
import warnings
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from wsi_saliency.errors import ModelError

if TYPE_CHECKING:
    from pathlib import Path

SUFFIXES = (".safetensors", ".pt", ".pth", ".ckpt")

# Where training programs put the state dict inside a checkpoint; timm itself prefers the averaged weights.
_NESTED_IN = ("state_dict_ema", "model_ema", "state_dict", "model_state_dict", "model")

# What DataParallel, Lightning modules and torch.compile put before every name.
_PREFIXES = ("module.", "model.", "_orig_mod.")

_AS_STATE_DICT = "save torch.save(model.state_dict(), FILE) or a safetensors file instead"


@dataclass(frozen=True)
class Description:
    """What a weights file says of its model; None where it says nothing."""

    architecture: str | None = None
    model_args: Mapping[str, Any] = field(default_factory=dict)
    patch: int | None = None
    mpp: float | None = None
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None
    class_names: tuple[str, ...] | None = None
    note: str | None = None


@dataclass(frozen=True)
class Weights:
    """A state dict with its file.

    Parameters
    ----------
    path
        The file.
    state
        Tensors on the CPU by parameter name, without the prefixes of training programs.
    description
        What the file says of its model.
    sha256
        Hash of the file, hexadecimal.
    """

    path: Path
    state: Mapping[str, Tensor]
    description: Description
    sha256: str


def read_weights(path: Path) -> Weights:
    """Read a ``.safetensors`` file, or a state dict from a PyTorch file with ``weights_only=True``.

    Raises
    ------
    ModelError
        If there is no such file, it is damaged, it holds no state dict, or it would need arbitrary pickled
        code or TorchScript to be read.
    """
    path = path.expanduser()
    if not path.is_file():
        what = "is a folder, not a weights file" if path.is_dir() else "does not exist"
        raise ModelError(f"{path} {what}; give a {', '.join(SUFFIXES)} file with --weights FILE")
    try:
        sha256 = _sha256(path)
    except OSError as error:
        raise ModelError(f"{path} cannot be read ({error.strerror})") from error
    state, description = _read_safetensors(path) if path.suffix == ".safetensors" else _read_torch(path)
    return Weights(path, _without_prefixes(state), description, sha256)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], Description]:
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a mapping
            metadata = file.metadata() or {}
    except SafetensorError as error:
        raise ModelError(f"{path} is damaged or no safetensors file ({error})") from error
    return state, _described(metadata, path)


def _read_torch(path: Path) -> tuple[dict[str, Tensor], Description]:
    checkpoint = _load_torch(path)
    if not isinstance(checkpoint, Mapping):
        raise ModelError(f"{path} holds a {type(checkpoint).__name__}, not a state dict; {_AS_STATE_DICT}")
    state = next(
        (checkpoint[key] for key in _NESTED_IN if isinstance(checkpoint.get(key), Mapping)), checkpoint
    )
    if not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise ModelError(f"{path} holds no state dict (names with tensors); {_AS_STATE_DICT}")
    if "pytorch-lightning_version" in checkpoint:
        state = _lightning_model(state)
    arch = checkpoint.get("arch")  # timm's training script writes it
    return dict(state), Description(architecture=arch if isinstance(arch, str) else None)


def _load_torch(path: Path) -> object:
    if _is_torchscript(path):
        raise ModelError(
            f"{path} is a TorchScript archive, whose layers cannot be hooked; "
            "pass its state dict with --model timm:NAME --weights FILE"
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore"
            )  # of odd pickle protocols: the file either loads or is refused below
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        code = re.search(r"GLOBAL (\S+)", str(error))
        if code is None:
            raise ModelError(f"{path} is damaged or no PyTorch weights file") from error
        raise ModelError(
            f"{path} would have to run pickled code ({code[1]}) and is refused; {_AS_STATE_DICT}"
        ) from error
    except Exception as error:  # a damaged pickle raises whatever its bytes happen to say
        raise ModelError(f"{path} is damaged or no PyTorch weights file ({type(error).__name__})") from error


def _is_torchscript(path: Path) -> bool:
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def _lightning_model(state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Keep the network: a Lightning module may hold losses and metrics beside ``model``."""
    return {key: value for key, value in state.items() if key.startswith("model.")} or state


def _without_prefixes(state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    for prefix in _PREFIXES:
        if state and all(key.startswith(prefix) for key in state):
            return _without_prefixes({key.removeprefix(prefix): value for key, value in state.items()})
    return state


def _described(metadata: Mapping[str, str], path: Path) -> Description:
    fields: dict[str, Any] = {}
    for key, parse in _METADATA.items():
        if key in metadata:
            try:
                fields[key] = parse(metadata[key])
            except ValueError as error:
                raise ModelError(f"{path}: metadata {key!r} is {metadata[key]!r} ({error})") from error
    return Description(**fields)


def _positive(text: str) -> float:
    value = float(text)
    if not (value > 0 and math.isfinite(value)):
        raise ValueError("has to be positive")
    return value


def _pixels(text: str) -> int:
    if int(text) < 1:
        raise ValueError("has to be positive")
    return int(text)


def _three_numbers(text: str) -> tuple[float, float, float]:
    values = json.loads(text)
    if not (isinstance(values, list) and len(values) == 3 and all(type(v) in (int, float) for v in values)):
        raise ValueError("has to be a JSON list of three numbers")
    return float(values[0]), float(values[1]), float(values[2])


def _names(text: str) -> tuple[str, ...]:
    values = json.loads(text)
    if not (isinstance(values, list) and values and all(isinstance(v, str) for v in values)):
        raise ValueError("has to be a JSON list of names")
    return tuple(values)


def _arguments(text: str) -> dict[str, Any]:
    values = json.loads(text)
    if not isinstance(values, dict):
        raise ValueError("has to be a JSON object")
    return values


_METADATA: Mapping[str, Callable[[str], object]] = {
    "architecture": str,
    "model_args": _arguments,
    "patch": _pixels,
    "mpp": _positive,
    "mean": _three_numbers,
    "std": _three_numbers,
    "class_names": _names,
    "note": str,
}
