"""Facts: each is said to people in a line, and to programs as a value with a key. Free of torch."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable

Lines = list[tuple[str, str]]

LISTS = ("layers", "notes", "warnings")
"""Keys that there may be several facts of, or none."""

_LABELS = {"patch": "input", "layers": "layer", "notes": "note", "warnings": "warning"}


class Fact(NamedTuple):
    """Something that is known.

    Parameters
    ----------
    key
        Its name in JSON; those of `LISTS` may come more than once.
    text
        What is said of it in a line.
    value
        What JSON says of it: numbers, texts, and lists and dicts of them.
    """

    key: str
    text: str
    value: Any

    @property
    def label(self) -> str:
        """What stands in front of the text."""
        return _LABELS.get(self.key, self.key.replace("_", " "))


def note(text: str) -> Fact:
    """Return something that is good to know."""
    return Fact("notes", text, text)


def warning(text: str) -> Fact:
    """Return something that may make maps worthless."""
    return Fact("warnings", text, text)


def lines_of(facts: Iterable[Fact]) -> Lines:
    """Return labels and texts."""
    return [(fact.label, fact.text) for fact in facts]


def json_of(facts: Iterable[Fact]) -> str:
    """Return one JSON object, which any parser takes: numbers that are not finite are null."""
    told: dict[str, Any] = {}
    for fact in facts:
        value = _finite(fact.value)
        if fact.key in LISTS:
            told.setdefault(fact.key, []).append(value)
        else:
            told[fact.key] = value
    told |= {key: [] for key in LISTS if key not in told}
    return json.dumps(told, indent=2, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
