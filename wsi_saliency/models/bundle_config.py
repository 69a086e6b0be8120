"""What the configuration of a MONAI bundle says of its network and of what it sees. Free of torch.

Of ``configs/inference.json`` (or ``.yaml``), ``network_def`` and ``preprocessing`` are read, as values:
expressions (``$``), which MONAI would run as Python, are refused. ``configs/metadata.json`` says the patch
and the classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from wsi_saliency.errors import ModelError
from wsi_saliency.messages import one_line
from wsi_saliency.models.description import Description
from wsi_saliency.models.json_files import Document, mapping, number, objects, text, whole

if TYPE_CHECKING:
    from collections.abc import Mapping

CONFIGS = (
    ("configs/inference.json", "configs/inference.yaml", "configs/inference.yml"),
    ("configs/metadata.json",),
)
"""The two files, the first of each that there is."""
WEIGHTS_FILE = "models/model.pt"

# µm per pixel, by the name in metadata.json, which has no place for it.
_KNOWN_MPP: Mapping[str, float] = {"Pathology tumor detection": 0.25}

# Arguments that do not matter: the weights that come are the file's.
_OF_TRAINING = {"pretrained", "weights", "progress", "bias"}

# Transforms that change no value of a pixel.
_PLAIN = {
    "LoadImage",
    "EnsureChannelFirst",
    "AsChannelFirst",
    "CastToType",
    "EnsureType",
    "ToTensor",
    "ToDevice",
}


@dataclass(frozen=True)
class Network:
    """A class with its arguments.

    Parameters
    ----------
    target
        Name of the class, without its package.
    package
        Name of the package; empty where it is MONAI's.
    arguments
        Keyword arguments, plain values.
    named
        The file and the key, for a message.
    """

    target: str
    package: str
    arguments: Mapping[str, Any]
    named: str


def network_of(inference: Document) -> Network:
    """Return the network of a bundle.

    Raises
    ------
    ModelError
        If there is none, or it takes Python to know it.
    """
    key = "network_def" if "network_def" in inference.values else "network"
    definition = inference.section(key)
    target = definition.need("_target_", text)
    arguments = {k: _plain(inference, definition, k) for k in definition.values if not k.startswith("_")}
    package, _, name = target.rpartition(".")
    foreign = "" if package.split(".")[0] in ("", "monai") else package
    return Network(name, foreign, arguments, inference.named(key))


def arguments_of(network: Network, *any_value: str, **only: Any) -> dict[str, Any]:
    """Return the arguments of a network; refuse those that would make it another one.

    Parameters
    ----------
    network
        The network.
    any_value
        Arguments that may have any value.
    only
        Arguments with the one value that is understood.

    Raises
    ------
    ModelError
        If there is another argument, or another value.
    """
    for name, value in network.arguments.items():
        if name not in {*any_value, *_OF_TRAINING} and only.get(name, arguments_of) != value:
            raise ModelError(
                f"{network.named} has {one_line(name)} = {one_line(repr(value))}, which is not understood"
            )
    return {name: value for name, value in network.arguments.items() if name in any_value}


def _plain(inference: Document, definition: Document, key: str) -> Any:
    """Return a value, or the one that it refers to: ``@a``, in sections ``@a::b`` or ``@a#b``."""
    value = definition.values[key]
    if isinstance(value, str) and value.startswith("@"):
        value = _referred(inference.values, value)
    if isinstance(value, str) and value.startswith(("@", "$")):
        raise ModelError(
            f"{definition.named(key)} is {one_line(value)!r}, which has to be run as Python and is refused; "
            "write its value there"
        )
    return value


def _referred(values: Any, reference: str) -> Any:
    """Return what a reference names; the reference itself where there is nothing."""
    for key in reference[1:].replace("::", "#").split("#"):
        if not isinstance(values, dict) or key not in values:
            return reference
        values = values[key]
    return values


def bundle_description(inference: Document, metadata: Document) -> Description:
    """Return what a bundle says of its patches and classes.

    Raises
    ------
    ModelError
        If the preprocessing is none that is understood, or a value is not what it has to be.
    """
    data = metadata.section("network_data_format")
    image, prediction = _only(data.section("inputs"), "image"), _only(data.section("outputs"), "pred")
    if image.get("num_channels", whole) not in (None, 3):
        raise ModelError(f"{image.named('num_channels')} is not 3; only RGB patches can be explained")
    mean, std = _normalisation(inference)
    intended = metadata.get("intended_use", text)
    return Description(
        patch=image.get("spatial_shape", _square),
        mpp=_KNOWN_MPP.get(metadata.get("name", text) or ""),
        mean=mean,
        std=std,
        class_names=prediction.get("channel_def", _channels),
        note=f"its makers say: {intended}" if intended else None,
    )


def _only(documents: Document, usual: str) -> Document:
    """Return the one object in another, whatever it is called; of several, that with the usual name."""
    return documents.section(next(iter(documents.values)) if len(documents.values) == 1 else usual)


def _square(value: Any) -> int | None:
    """Take the shape of a patch; one that is a pattern (``16*n``) says no side."""
    if not isinstance(value, list) or len(value) != 2 or not all(type(v) is int for v in value):
        return None
    if value[0] != value[1]:
        raise ValueError("only square patches can be explained")
    return whole(value[0])


def _channels(value: Any) -> tuple[str, ...] | None:
    """Take the classes by their numbers; without any, they have no names."""
    named = mapping(value)
    if set(named) != set(map(str, range(len(named)))):
        raise ValueError("has to number its channels from 0 on")
    return tuple(text(named[str(i)]) for i in range(len(named))) or None


_Colours = tuple[float, float, float]


def _normalisation(inference: Document) -> tuple[_Colours, _Colours]:
    """Return mean and std of pixel / 255 that do what the transforms do to a pixel, one after another."""
    scale, shift = [1.0] * 3, [0.0] * 3  # of a pixel from 0 to 255
    preprocessing = inference.section("preprocessing")
    for i, values in enumerate(preprocessing.need("transforms", objects)):
        one = Document(inference.path, values, f"preprocessing.transforms[{i}].")
        for c, (factor, summand) in enumerate(_step(one)):
            scale[c], shift[c] = scale[c] * factor, shift[c] * factor + summand
    if min(scale) <= 0:
        raise ModelError(f"{preprocessing.named('transforms')} turn light into dark, which is not understood")
    std = tuple(1 / (255 * s) for s in scale)
    mean = tuple(-t * d for t, d in zip(shift, std, strict=True))
    return (mean[0], mean[1], mean[2]), (std[0], std[1], std[2])


def _step(one: Document) -> list[tuple[float, float]]:
    """Return what a transform multiplies the pixels of each colour with, and what it adds then."""
    target = one.need("_target_", text).rpartition(".")[2]
    name = target.removesuffix("Dict").removesuffix("d").removesuffix("D")
    if name in _PLAIN:
        return [(1.0, 0.0)] * 3
    if name == "ScaleIntensityRange":
        return [_range(one)] * 3
    if name == "NormalizeIntensity":
        divisors = one.need("divisor", _colours)
        subtrahends = one.need("subtrahend", _colours)
        if min(divisors) > 0 and not one.values.get("nonzero"):
            return [(1 / d, -s / d) for s, d in zip(subtrahends, divisors, strict=True)]
    raise ModelError(
        f"{one.named('_target_')} is {target} with values that are not understood, or none that is"
    )


def _range(one: Document) -> tuple[float, float]:
    a_min, a_max = one.need("a_min", number), one.need("a_max", number)
    b_min, b_max = one.get("b_min", number), one.get("b_max", number)
    low, high = (0.0, 1.0) if b_min is None or b_max is None else (b_min, b_max)
    if a_min >= a_max or (one.values.get("clip") and not (a_min <= 0 and a_max >= 255)):
        raise ModelError(f"{one.named('a_min')} to a_max does not span the pixels from 0 to 255")
    factor = (high - low) / (a_max - a_min)
    return factor, low - a_min * factor


def _colours(value: Any) -> tuple[float, ...]:
    values = tuple(map(number, value)) if isinstance(value, list) else (number(value),) * 3
    if len(values) != 3:
        raise ValueError("has to be a number or a list of three")
    return values
