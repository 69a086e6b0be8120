"""JSON and YAML that others have written: read within bounds, and every value checked where it is taken out.

The checks of single values (`pixels`, `names`, ...) raise ValueError with what the value has to be; a
`Document` adds the file and the key.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from wsi_saliency.errors import ModelError
from wsi_saliency.messages import bytes_in_words, one_line
from wsi_saliency.models.yaml_files import parsed_yaml

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

_T = TypeVar("_T")

YAML_SUFFIXES = (".yaml", ".yml")

_LARGEST = 4 * 2**20  # bytes; the description of a model takes some thousands

_LARGEST_NUMBER = 10**9  # of pixels or classes


@dataclass(frozen=True)
class Document:
    """An object of a JSON or YAML file.

    Parameters
    ----------
    path
        The file, for messages.
    values
        What it says.
    within
        Keys that lead to the object, each with a dot behind it; empty at the top.
    """

    path: Path
    values: Mapping[str, Any]
    within: str = ""

    def get(self, key: str, parse: Callable[[Any], _T]) -> _T | None:
        """Return a value as ``parse`` takes it; None where the key is missing or null.

        Raises
        ------
        ModelError
            If ``parse`` does not take it.
        """
        value = self.values.get(key)
        if value is None:
            return None
        try:
            return parse(value)
        except (ValueError, OverflowError, RecursionError) as error:
            raise ModelError(f"{self.named(key)} is {one_line(repr(value))} ({one_line(error)})") from error

    def need(self, key: str, parse: Callable[[Any], _T]) -> _T:
        """Return a value that has to be there.

        Raises
        ------
        ModelError
            If it is missing, or ``parse`` does not take it.
        """
        value = self.get(key, parse)
        if value is None:
            raise ModelError(f"{self.named(key)} is missing")
        return value

    def section(self, key: str) -> Document:
        """Return the object below a key; an empty one where the key is missing."""
        return Document(self.path, self.get(key, mapping) or {}, f"{self.within}{one_line(key)}.")

    def named(self, key: str) -> str:
        """Return the file and the key, for a message."""
        return f"{self.path}: {self.within}{one_line(key)}"


def read_document(path: Path) -> Document:
    """Read the object that a JSON file holds, or a YAML file (``.yaml``, ``.yml``).

    Raises
    ------
    ModelError
        If it cannot be read, is larger than such a file ever is, or is no such object.
    """
    kind, parse = ("YAML", parsed_yaml) if path.suffix in YAML_SUFFIXES else ("JSON", json.loads)
    try:
        if (size := path.stat().st_size) > _LARGEST:
            raise ModelError(f"{path} has {bytes_in_words(size)}; no description of a model is so large")
        values = parse(path.read_bytes())
    except OSError as error:
        raise ModelError(f"{path} cannot be read ({error.strerror or error})") from error
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path} is no {kind} ({one_line(error)}); copy or download it again") from error
    if not isinstance(values, dict):
        raise ModelError(f"{path} is no {kind} object, and so describes no model")
    return Document(path, values)


def text(value: Any) -> str:
    """Take a text, which may be shown."""
    if not isinstance(value, str):
        raise ValueError("has to be a text")
    return one_line(value)


def whole(value: Any) -> int:
    """Take a whole number of at least 1, and not beyond all measure."""
    if type(value) is not int or not 1 <= value <= _LARGEST_NUMBER:
        raise ValueError("has to be a whole number of at least 1")
    return value


def number(value: Any) -> float:
    """Take a finite number."""
    if type(value) not in (int, float) or not math.isfinite(value):
        raise ValueError("has to be a finite number")
    return float(value)


def positive(value: Any) -> float:
    """Take a finite number above 0."""
    if number(value) <= 0:
        raise ValueError("has to be positive")
    return float(value)


def three_numbers(value: Any) -> tuple[float, float, float]:
    """Take a list of three finite numbers: red, green, blue."""
    if not isinstance(value, list) or len(value) != 3:
        raise ValueError("has to be a list of three numbers")
    x, y, z = map(number, value)
    return x, y, z


def three_positive(value: Any) -> tuple[float, float, float]:
    """Take a list of three numbers above 0."""
    values = three_numbers(value)
    if min(values) <= 0:
        raise ValueError("has to be positive")
    return values


def names(value: Any) -> tuple[str, ...]:
    """Take a list of names, which may be shown."""
    if not (isinstance(value, list) and value and all(isinstance(v, str) for v in value)):
        raise ValueError("has to be a list of names")
    return tuple(one_line(v) for v in value)


def mapping(value: Any) -> dict[str, Any]:
    """Take an object."""
    if not isinstance(value, dict):
        raise ValueError("has to be an object")
    return value


def objects(value: Any) -> list[dict[str, Any]]:
    """Take a list of objects."""
    if not isinstance(value, list):
        raise ValueError("has to be a list of objects")
    return [mapping(v) for v in value]


def square_rgb(value: Any) -> int:
    """Take [3, side, side], the shape of a square RGB patch, and return its side in pixels."""
    if not isinstance(value, list) or len(value) != 3:
        raise ValueError("has to be a list of channels, height and width")
    channels, height, width = map(whole, value)
    if channels != 3 or height != width:
        raise ValueError("only square RGB patches can be explained")
    return width
