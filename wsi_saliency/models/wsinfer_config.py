"""WSInfer's ``config.json``, version 1.0 of its specification. Free of torch.

A patch of ``patch_size_pixels`` at ``spacing_um_px`` is resized as ``transform`` says, and the network sees
the result. Here the slide is read at the resolution of that result, patch · spacing / size µm per pixel: the
box on the slide is the same, and its pixels pass Pillow's antialiased bilinear filter, that of ``Resize``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from wsi_saliency.errors import ModelError
from wsi_saliency.messages import one_line
from wsi_saliency.models.description import Description
from wsi_saliency.models.json_files import (
    mapping,
    names,
    objects,
    positive,
    text,
    three_numbers,
    three_positive,
    whole,
)
from wsi_saliency.models.wording import some

if TYPE_CHECKING:
    from collections.abc import Mapping

    from wsi_saliency.models.json_files import Document

REGISTRY_FILE = "wsinfer-zoo-registry.json"
SPEC_VERSIONS = ("1.0",)
_KEYS = frozenset(
    {"spec_version", "architecture", "num_classes", "class_names", "patch_size_pixels", "spacing_um_px"}
    | {"transform", "$schema"}
)
_ARGUMENTS: Mapping[str, frozenset[str]] = {
    "Resize": frozenset({"size"}),
    "ToTensor": frozenset(),
    "Normalize": frozenset({"mean", "std"}),
}
"""The transforms that there are, in their order, with their arguments."""


def is_wsinfer(config: Document) -> bool:
    """Tell WSInfer's configuration from others."""
    return "spec_version" in config.values


def wsinfer_description(config: Document) -> Description:
    """Read the architecture, what it sees and what it says.

    Raises
    ------
    ModelError
        If the version of the specification, a transform or an argument of one is unknown, or a value is not
        what it has to be.
    """
    version = config.need("spec_version", text)
    if version not in SPEC_VERSIONS:
        raise ModelError(
            f"{config.named('spec_version')} is {version}; only {', '.join(SPEC_VERSIONS)} is understood"
        )
    transforms = _transforms(config)
    side, spacing = config.need("patch_size_pixels", whole), config.need("spacing_um_px", positive)
    seen = transforms["Resize"].need("size", _square) if "Resize" in transforms else side
    normalize = transforms.get("Normalize")
    return Description(
        architecture=config.need("architecture", text),
        patch=seen,
        mpp=spacing * side / seen,
        mean=normalize.need("mean", three_numbers) if normalize else (0.0, 0.0, 0.0),
        std=normalize.need("std", three_positive) if normalize else (1.0, 1.0, 1.0),
        class_names=config.need("class_names", names),
        classes=config.need("num_classes", whole),
        note=_unused(config),
    )


def _unused(config: Document) -> str | None:
    """Name what the specification does not have; it may change what the network sees."""
    unknown = sorted(config.values.keys() - _KEYS)
    return f"config.json says more, which is not used: {some(unknown)}" if unknown else None


def _transforms(config: Document) -> dict[str, Document]:
    """Return the arguments of each transform, by its name."""
    found: dict[str, Document] = {}
    for i, transform in enumerate(config.need("transform", objects)):
        one = type(config)(config.path, transform, f"transform[{i}].")
        name = one.need("name", text)
        if name not in _ARGUMENTS:
            raise ModelError(f"{one.named('name')} is {name}; only {', '.join(_ARGUMENTS)} are understood")
        arguments = one.section("arguments")
        if unknown := sorted(set(arguments.values) - _ARGUMENTS[name]):
            raise ModelError(f"{arguments.named(unknown[0])} is not understood; {name} takes {_taken(name)}")
        if name in found:
            raise ModelError(f"{one.named('name')} is {name} once more")
        found[name] = arguments
    in_order = [name for name in _ARGUMENTS if name in found]
    if list(found) != in_order or "ToTensor" not in found:
        raise ModelError(
            f"{config.named('transform')} is {', '.join(found) or 'empty'}; the order has to be "
            f"{', '.join(_ARGUMENTS)}, of which only ToTensor is needed"
        )
    return found


def _taken(name: str) -> str:
    return " and ".join(sorted(_ARGUMENTS[name])) or "no arguments"


def _square(value: Any) -> int:
    """Take the size behind ``Resize``: a side, or height and width that are the same."""
    sides = set(map(whole, value)) if isinstance(value, list) and 1 <= len(value) <= 2 else {whole(value)}
    if len(sides) != 1:
        raise ValueError("only square patches can be explained")
    return sides.pop()


def registered(registry: Document, name: str) -> tuple[str, str]:
    """Return the repository and the revision of a model of the registry.

    Raises
    ------
    ModelError
        If it is not in it; the message lists close names.
    """
    models = registry.need("models", mapping)
    if name not in models:
        raise ModelError(f"WSInfer's registry has no {one_line(name)!r}; it has {some(sorted(models), 30)}")
    model = registry.section("models").section(name)
    return model.need("hf_repo_id", text), model.need("hf_revision", text)
