"""Networks that someone brings: from Python, from a function that is named, or from a plug-in."""

from __future__ import annotations

import copy
import hashlib
import importlib
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from wsi_saliency.errors import ModelError, WsiSaliencyError
from wsi_saliency.messages import one_line
from wsi_saliency.models.classifier import Classifier, checked
from wsi_saliency.models.spec import ClassifierSpec

if TYPE_CHECKING:
    from collections.abc import Iterator


def own_classifier(module: nn.Module, spec: ClassifierSpec, uri: str = "own") -> Classifier:
    """Make a classifier of a network in eager PyTorch; the network stays as it is.

    Parameters
    ----------
    module
        Maps normalised patches (N, 3, patch, patch), float32, to logits (N, K), (N,) of one class, or
        (N, K, 1, 1).
    spec
        What has to be known of it.
    uri
        What it is called in messages and results.

    Returns
    -------
    Classifier
        Of a copy on the CPU, frozen, in eval mode and float32. Its ``sha256`` is that of the names and values
        of the network's state.

    Raises
    ------
    ModelError
        If it is no such network, or does not give logits.
    """
    return checked(_own(module, spec, uri))


def _own(module: nn.Module, spec: ClassifierSpec, uri: str) -> Classifier:
    if not isinstance(module, nn.Module) or not isinstance(spec, ClassifierSpec):
        raise ModelError(
            f"{uri} gives {type(module).__name__} and {type(spec).__name__}; a network (nn.Module) and a "
            "ClassifierSpec are needed"
        )
    if isinstance(module, torch.jit.ScriptModule):
        raise ModelError(
            f"{uri} gives a scripted module, which has no hooks; give the network it was made of"
        )
    try:
        copied = copy.deepcopy(module).cpu().float()
    except Exception as error:  # networks may hold what nobody can copy
        raise ModelError(
            f"{uri}: its network cannot be copied ({type(error).__name__}: {one_line(error)})"
        ) from error
    names = tuple(one_line(name) for name in spec.class_names)
    return Classifier(
        module=copied.eval().requires_grad_(False),
        uri=uri,
        architecture=one_line(spec.architecture),
        patch=spec.patch,
        mpp=spec.mpp,
        mean=_three(spec.mean),
        std=_three(spec.std),
        class_names=names,
        output=spec.output or ("sigmoid" if len(names) == 1 else "softmax"),
        sha256=_hash_of(module),
        notes=tuple(map(one_line, spec.notes)),
    )


def _three(values: tuple[float, float, float]) -> tuple[float, float, float]:
    x, y, z = map(float, values)
    return x, y, z


def _hash_of(module: nn.Module) -> str:
    digest = hashlib.sha256()
    for name, value in module.state_dict().items():
        tensor = value.detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def load_python(name: str, weights: Path | None) -> Classifier:
    """Load what the function ``package.module:function`` returns, a network and its `ClassifierSpec`.

    The module is imported as Python does, from what is installed and then from the current folder. This runs
    its code with all rights of the user.

    Raises
    ------
    ModelError
        If there is no such function, it fails, or returns anything else.
    """
    uri = f"python:{one_line(name)}"
    module, _, function = name.partition(":")
    if not module or not function:
        raise ModelError(f"--model {uri} names no function; write python:package.module:function")
    if weights is not None:
        raise ModelError(f"--model {uri} brings its own weights; leave out --weights")
    with _current_folder():
        try:
            returned = getattr(importlib.import_module(module), function)()
        except WsiSaliencyError:
            raise
        except Exception as error:  # code of others raises anything
            raise ModelError(f"--model {uri} failed ({type(error).__name__}: {one_line(error)})") from error
    return as_classifier(returned, uri)


@contextmanager
def _current_folder() -> Iterator[None]:
    """Let Python import from the current folder, after all else."""
    folder = str(Path.cwd())
    sys.path.append(folder)
    try:
        yield
    finally:
        sys.path.remove(folder)


def as_classifier(returned: Any, uri: str) -> Classifier:
    """Return the classifier that a function of others returned, itself or as a network with its spec.

    Raises
    ------
    ModelError
        If it is neither.
    """
    if isinstance(returned, Classifier):
        return returned
    if isinstance(returned, tuple) and len(returned) == 2:
        return _own(returned[0], returned[1], uri)
    raise ModelError(
        f"{uri} gives {type(returned).__name__}; a network (nn.Module) and its ClassifierSpec are needed"
    )
