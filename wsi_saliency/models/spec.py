"""What has to be known of a network that someone brings. Free of torch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from wsi_saliency.errors import ModelError

Output = Literal["sigmoid", "softmax"]


@dataclass(frozen=True, kw_only=True)
class ClassifierSpec:
    """What has to be known of a network of your own, to feed it and to read its logits.

    Parameters
    ----------
    patch
        Side of a patch, pixels at ``mpp``.
    mpp
        µm per pixel it was trained at; None if you do not know.
    mean, std
        Normalisation of pixel / 255, red, green, blue: it sees (pixel / 255 − mean) / std.
    class_names
        One name per logit; a single logit is named after the positive class.
    output
        What turns logits into probabilities; None: sigmoid of a single logit, else softmax.
    architecture
        What it is called in results.
    notes
        What a user should be told once when it is used.

    Raises
    ------
    ModelError
        If a value is none that can be.
    """

    patch: int
    mpp: float | None
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    class_names: tuple[str, ...]
    output: Output | None = None
    architecture: str = "own"
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        problems = {
            f"patch {self.patch!r} is no side in pixels": not _is_side(self.patch),
            f"mpp {self.mpp!r} is neither positive nor None": not (self.mpp is None or _positive(self.mpp)),
            f"mean {self.mean!r} is not three numbers": not _are_three(self.mean),
            f"std {self.std!r} is not three positive numbers": not (
                _are_three(self.std) and all(map(_positive, self.std))
            ),
            f"class_names {self.class_names!r} is no list of names": not _are_names(self.class_names),
            f"output {self.output!r} is not sigmoid, softmax or None": self.output
            not in ("sigmoid", "softmax", None),
        }
        for problem, found in problems.items():
            if found:
                raise ModelError(f"ClassifierSpec: {problem}")


def _is_side(value: object) -> bool:
    return type(value) is int and value > 0


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _positive(value: float) -> bool:
    return _is_number(value) and value > 0


def _are_three(values: object) -> bool:
    return isinstance(values, tuple | list) and len(values) == 3 and all(map(_is_number, values))


def _are_names(values: object) -> bool:
    return isinstance(values, tuple | list) and bool(values) and all(isinstance(v, str) for v in values)
