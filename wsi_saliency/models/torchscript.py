"""TorchScript archives: the state dict inside one, without the program around it.

Scripted modules take no hooks, but their weights fit the eager architecture that they were made from. The
archive is a pickle of nested objects, whose classes are the scripted modules, with its tensors as members.
In a copy in memory each of these classes is replaced by an empty ordered dict, which `torch.load` accepts
with ``weights_only=True``: what remains is a tree of attributes. The archive's own code is not looked at.
"""

from __future__ import annotations

import io
import pickletools
import zipfile
from collections import OrderedDict
from typing import TYPE_CHECKING, Any

import torch
import torch.jit._pickle as jit_pickle
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_EMPTY = b"ccollections\nOrderedDict\n"
_SCRIPTED = "__torch__."
# Functions of torch that give a value of a scripted module back as it is.
_AS_IT_IS: list[Callable[..., Any] | tuple[Callable[..., Any], str]] = [
    jit_pickle.restore_type_tag,
    jit_pickle.build_intlist,
    jit_pickle.build_tensorlist,
    jit_pickle.build_doublelist,
    jit_pickle.build_boollist,
]
_MOST_OBJECTS, _DEEPEST = 100_000, 50  # an object may be named many times over, or hold itself


def is_torchscript(archive: zipfile.ZipFile) -> bool:
    """Tell TorchScript from what ``torch.save`` writes."""
    return any(name.endswith("/constants.pkl") for name in archive.namelist())


def state_of_torchscript(archive: zipfile.ZipFile, root: str) -> dict[str, Tensor]:
    """Return the tensors of a TorchScript archive, by the names that its eager module gives them.

    Parameters
    ----------
    archive
        Its members below ``root``/data are not compressed.
    root
        The folder inside, that of ``data.pkl``.

    Raises
    ------
    ValueError, pickle.UnpicklingError
        If its objects are nested beyond measure, or hold more than such a tree.
    """
    with torch.serialization.safe_globals(_AS_IT_IS):
        tree = torch.load(_plain_copy(archive, root), map_location="cpu", weights_only=True)
    return {name: value for name, value in _attributes(tree) if isinstance(value, Tensor)}


def _attributes(tree: object) -> Iterator[tuple[str, object]]:
    """Yield everything in the tree with its dotted name."""
    waiting: list[tuple[str, int, object]] = [("", 0, tree)]
    seen = 0
    while waiting:
        prefix, depth, node = waiting.pop()
        if not isinstance(node, OrderedDict):
            continue
        for name, value in vars(node).items():
            seen += 1
            if seen > _MOST_OBJECTS or depth > _DEEPEST:
                raise ValueError("objects nested beyond measure")
            yield f"{prefix}{name}", value
            waiting.append((f"{prefix}{name}.", depth + 1, value))


def _plain_copy(archive: zipfile.ZipFile, root: str) -> io.BytesIO:
    """Copy what ``torch.save`` would have written."""
    copied = io.BytesIO()
    with zipfile.ZipFile(copied, "w") as target:
        for name in archive.namelist():
            if name == f"{root}/data.pkl":
                target.writestr("archive/data.pkl", _without_classes(archive.read(name)))
            elif name.startswith(f"{root}/data/") or name in (f"{root}/version", f"{root}/byteorder"):
                target.writestr(f"archive/{name.removeprefix(f'{root}/')}", archive.read(name))
    copied.seek(0)
    return copied


def _without_classes(pickled: bytes) -> bytes:
    """Put an empty ordered dict for each class of the archive's own."""
    parts, done = [], 0
    for opcode, argument, position in pickletools.genops(pickled):
        if opcode.name == "GLOBAL" and str(argument).startswith(_SCRIPTED):
            assert position is not None  # only of what is read from a stream that cannot tell
            parts += [pickled[done:position], _EMPTY]
            done = position + len(f"c{argument}\n".encode())
    return b"".join([*parts, pickled[done:]])
