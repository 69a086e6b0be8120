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

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open

from wsi_saliency.errors import ModelError
from wsi_saliency.filetypes import read_head
from wsi_saliency.messages import bytes_in_words, one_line
from wsi_saliency.models.checkpoints import read_before_zip, read_zipped
from wsi_saliency.models.description import Description
from wsi_saliency.models.hashes import sha256_of
from wsi_saliency.models.json_files import mapping, names, positive, three_numbers, three_positive, whole
from wsi_saliency.models.kinds import kind_of, what_is
from wsi_saliency.models.sources import SUFFIXES

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from torch import Tensor

# What DataParallel, Lightning modules and torch.compile put before every name.
_PREFIXES = ("module.", "model.", "_orig_mod.", "net.", "network.", "backbone.", "encoder.")

_NESTED_PREFIXES = 8

_LARGEST = 16 * 2**30  # bytes


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
    """Read a safetensors file, or a state dict from a PyTorch file with ``weights_only=True``.

    It is read as what it is, whatever its name ends with.

    Raises
    ------
    ModelError
        If there is no such file, it is damaged, it holds no state dict, or it would have to run pickled code
        or take memory that it has no bytes for.
    """
    path = path.expanduser()
    if not path.is_file():
        what = "is a folder, not a weights file" if path.is_dir() else "does not exist"
        raise ModelError(f"{path} {what}; weights are a {', '.join(SUFFIXES)} file")
    try:
        state, description = _read(path)
        sha256 = sha256_of(path)
    except OSError as error:
        raise ModelError(f"{path} cannot be read ({error.strerror or error})") from error
    return Weights(path, _without_prefixes(state), description, sha256)


def _read(path: Path) -> tuple[dict[str, Tensor], Description]:
    head = read_head(path)
    if path.stat().st_size > _LARGEST:
        raise ModelError(f"{path} has {bytes_in_words(path.stat().st_size)}; no patch classifier is so large")
    kind = kind_of(head)
    if kind == "safetensors":
        return _read_safetensors(path)
    if kind is None:
        raise ModelError(
            f"{path} is {what_is(head)}; weights are a safetensors file or a state dict of torch.save"
        )
    if path.suffix == ".safetensors":  # torch.load goes by the name
        raise ModelError(f"{path} is a PyTorch file and not a safetensors file; rename it to end in .pt")
    state, architecture = read_zipped(path) if kind == "zip" else read_before_zip(path)
    return state, Description(architecture=architecture)


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], Description]:
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a mapping
            metadata = file.metadata() or {}
    except SafetensorError as error:
        raise ModelError(
            f"{path} is a damaged or cut safetensors file ({one_line(error)}); copy or download it again"
        ) from error
    return state, _described(metadata, path)


def _without_prefixes(state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    for _ in range(_NESTED_PREFIXES):
        common = [p for p in _PREFIXES if state and all(key.startswith(p) for key in state)]
        if not common:
            break
        state = {key.removeprefix(common[0]): value for key, value in state.items()}
    return state


def _described(metadata: Mapping[str, str], path: Path) -> Description:
    fields: dict[str, Any] = {}
    for key, parse in _METADATA.items():
        if key in metadata:
            try:
                fields[key] = parse(metadata[key])
            except (ValueError, OverflowError, RecursionError) as error:
                raise ModelError(
                    f"{path}: metadata {key!r} is {one_line(metadata[key])!r} ({one_line(error)})"
                ) from error
    return Description(**fields)


def _from_json(check: Callable[[Any], object]) -> Callable[[str], object]:
    return lambda text: check(json.loads(text))


_METADATA: Mapping[str, Callable[[str], object]] = {
    "architecture": one_line,
    "model_args": _from_json(mapping),
    "patch": lambda text: whole(int(text)),
    "mpp": lambda text: positive(float(text)),
    "mean": _from_json(three_numbers),
    "std": _from_json(three_positive),
    "class_names": _from_json(names),
    "note": one_line,
}
