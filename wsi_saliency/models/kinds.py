"""Kinds of weights files, and what a file is that is none, by its first bytes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from wsi_saliency.filetypes import is_safetensors, type_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from wsi_saliency.filetypes import Sort

Kind = Literal["safetensors", "zip", "pickle"]

# What torch.save put in front before it wrote zip archives: a pickled number.
_TORCH_BEFORE_ZIP = bytes.fromhex("6cfc9c46f9206aa85019")

_JSON = "a JSON text"
_ADVICE: Mapping[Sort, str] = {
    "packed": ": unpack it first",
    "pointer": ": git lfs pull gets the file itself",
    "page": ": the link led to a page and not to the file",
    "tiff": ", perhaps a slide",
    "hdf5": ", as Keras writes",
}


def kind_of(head: bytes) -> Kind | None:
    """Tell the kind of a file that may hold weights; None of any other.

    Parameters
    ----------
    head
        Its first bytes, from `read_head`.
    """
    if is_safetensors(head):
        return "safetensors"
    if head.startswith(b"PK\x03\x04"):
        return "zip"
    return "pickle" if _TORCH_BEFORE_ZIP in head[:32] else None


def what_is(head: bytes) -> str:
    """Say what a file that holds no weights is, by the head from `read_head`."""
    if not head:
        return "an empty file"
    if found := type_of(head):
        described = ": if it describes a model, give the folder that it is in, --model FOLDER"
        return found.name + (described if found.name == _JSON else _ADVICE.get(found.sort, ""))
    if head.startswith(b"\x80") and head[1:2] <= b"\x05":
        return "a pickle, which would have to run code, and no state dict of torch.save"
    if b"onnx" in head.lower() or b"pytorch" in head[:64].lower():  # the name of what made it comes first
        return "probably an ONNX model"
    return "neither a safetensors nor a PyTorch file"
