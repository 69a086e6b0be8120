"""Checkpoints: PyTorch files, read without running any code of theirs and without taking memory on trust.

Everything goes through ``torch.load(weights_only=True)``. A zip archive is mapped, so that no tensor can
reach beyond the file; what would be inflated, or made without being in the file, is refused before that.
"""

from __future__ import annotations

import mmap
import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from wsi_saliency.errors import ModelError
from wsi_saliency.messages import bytes_in_words, one_line
from wsi_saliency.models.torchscript import is_torchscript, state_of_torchscript
from wsi_saliency.models.wording import some

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

# Where training programs put the state dict inside a checkpoint; timm itself prefers the averaged weights.
_NESTED_IN = (
    *("state_dict_ema", "model_ema", "state_dict", "model_state_dict", "model"),
    *("net", "network", "weights", "params"),
)
_NESTED_LEVELS = 3

# What the head is called where it stands beside a backbone that is called model.
_HEADS = ("classifier.", "head.", "fc.", "linear.", "cls_head.", "classification_head.", "output.")

AS_STATE_DICT = "save torch.save(model.state_dict(), FILE) or a safetensors file instead"

_LARGEST_PICKLE = 64 * 2**20  # bytes; a state dict of a thousand tensors takes a tenth of a megabyte
_SHARED = 8  # times that tensors may claim the same bytes: tied weights do
_FILLS_MEMORY = b"bytearray"  # the one thing that an allowed pickle can make larger than itself


def read_zipped(path: Path) -> tuple[dict[str, Tensor], str | None]:
    """Read the state dict, and timm's name of the architecture, from a zip archive of PyTorch or TorchScript.

    Raises
    ------
    ModelError
        If it is damaged, compressed, holds no state dict, or would have to run code.
    """
    with _refusals(path), zipfile.ZipFile(path) as archive:
        pickles = [name for name in archive.namelist() if name.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise ModelError(f"{path} is {_kind_of_zip(archive)}; {AS_STATE_DICT}")
        root = pickles[0].removesuffix("/data.pkl")
        _check_members(path, archive, root)
        if is_torchscript(archive):
            return _scripted(path, archive, root), None
    return _state_of(path, _loaded(path, mmap=True))


def read_before_zip(path: Path) -> tuple[dict[str, Tensor], str | None]:
    """Read them from a file of PyTorch's older format, which is no zip archive.

    Raises
    ------
    ModelError
        As `read_zipped`.
    """
    with path.open("rb") as file, closing(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)) as content:
        if content.find(_FILLS_MEMORY) >= 0:
            raise _no_weights(path)
    return _state_of(path, _loaded(path, mmap=False))


def _check_members(path: Path, archive: zipfile.ZipFile, root: str) -> None:
    """Refuse what would take more memory than the file is large; TorchScript's own code may be compressed."""
    read = [info for info in archive.infolist() if not info.filename.startswith(f"{root}/code/")]
    on_disk, unpacked = path.stat().st_size, sum(info.file_size for info in read)
    if any(info.compress_type != zipfile.ZIP_STORED for info in read) or unpacked > on_disk:
        raise ModelError(
            f"{path} is compressed: its {bytes_in_words(on_disk)} would become {bytes_in_words(unpacked)}; "
            f"torch.save does not compress, {AS_STATE_DICT}"
        )
    if archive.getinfo(f"{root}/data.pkl").file_size > _LARGEST_PICKLE:
        raise _no_weights(path)
    if _FILLS_MEMORY in archive.read(f"{root}/data.pkl"):
        raise _no_weights(path)


def _kind_of_zip(archive: zipfile.ZipFile) -> str:
    names = archive.namelist()
    if any(name.endswith(".npy") for name in names):
        return "an archive of NumPy arrays, no PyTorch file"
    if "model.weights.h5" in names:
        return "a Keras model, no PyTorch file"
    return "a zip archive without weights of PyTorch"


def _scripted(path: Path, archive: zipfile.ZipFile, root: str) -> dict[str, Tensor]:
    try:
        with _refusals(path):
            state = state_of_torchscript(archive, root)
    except ModelError as error:
        raise ModelError(
            f"{error}; it is a TorchScript archive, whose weights could not be taken out"
        ) from error
    if not state:
        raise ModelError(
            f"{path} is a TorchScript archive without a state dict (torch.jit.freeze leaves none); save that "
            "of the model it was made of: torch.save(model.state_dict(), FILE)"
        )
    return _checked(path, state)


def _loaded(path: Path, *, mmap: bool) -> object:
    with _refusals(path):
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)


@contextmanager
def _refusals(path: Path) -> Iterator[None]:
    """Turn whatever a damaged or hostile pickle raises into one line."""
    try:
        with warnings.catch_warnings():
            # of odd pickle protocols: the file either loads or is refused
            warnings.simplefilter("ignore")
            yield
    except (ModelError, OSError):
        raise
    except pickle.UnpicklingError as error:
        code = re.search(r"GLOBAL (\S+)", str(error))
        if code is None:
            raise _damaged(path, error) from error
        raise ModelError(
            f"{path} would have to run pickled code ({one_line(code[1])}) and is refused; {AS_STATE_DICT}"
        ) from error
    except Exception as error:  # a damaged archive or pickle raises whatever its bytes happen to say
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> ModelError:
    return ModelError(f"{path} is damaged or cut short ({type(error).__name__}); copy or download it again")


def _no_weights(path: Path) -> ModelError:
    return ModelError(
        f"{path} holds more than a state dict, and what is in it could fill memory; {AS_STATE_DICT}"
    )


def _state_of(path: Path, checkpoint: object) -> tuple[dict[str, Tensor], str | None]:
    if not isinstance(checkpoint, Mapping):
        raise ModelError(f"{path} holds a {type(checkpoint).__name__}, not a state dict; {AS_STATE_DICT}")
    state: Mapping[Any, Any] = checkpoint
    for _ in range(_NESTED_LEVELS):
        state = next((state[key] for key in _NESTED_IN if isinstance(state.get(key), Mapping)), state)
    checked = _checked(path, state)
    if "pytorch-lightning_version" in checkpoint:
        checked = _lightning_model(checked)
    arch = checkpoint.get("arch")  # timm's training script writes it
    return checked, one_line(arch) if isinstance(arch, str) else None


def _checked(path: Path, state: Mapping[Any, Any]) -> dict[str, Tensor]:
    """Make sure that it is names with plain tensors, which are in the file as large as they say they are."""
    if not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise ModelError(f"{path} holds no state dict (names with tensors); {AS_STATE_DICT}")
    if not all(isinstance(name, str) for name in state):
        raise ModelError(
            f"{path}: its tensors have numbers for names, it holds no state dict; {AS_STATE_DICT}"
        )
    odd = [name for name, value in state.items() if not _is_plain(value)]
    if odd:
        raise ModelError(f"{path} has sparse, quantised or complex tensors ({some(odd)}); {AS_STATE_DICT}")
    claimed = sum(value.numel() * value.element_size() for value in state.values())
    if claimed > _SHARED * path.stat().st_size:
        raise ModelError(
            f"{path} is damaged: its tensors would take {bytes_in_words(claimed)}, and the file has "
            f"{bytes_in_words(path.stat().st_size)}"
        )
    return dict(state)


def _is_plain(value: Tensor) -> bool:
    return (
        type(value) in (Tensor, nn.Parameter)
        and value.layout == torch.strided
        and value.device.type == "cpu"
        and not value.is_quantized
        and not value.is_complex()
    )


def _lightning_model(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Keep the network: a Lightning module may hold losses and metrics beside ``model``, or its head."""
    prefix = next((p for p in ("model.", "net.", "network.") if any(key.startswith(p) for key in state)), "")
    return {key: value for key, value in state.items() if key.startswith((prefix, *_HEADS))}
