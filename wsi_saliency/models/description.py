"""What is said of a classifier, by its weights file or by a file beside it. Free of torch."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True)
class Description:
    """What is said of a classifier; None where nothing is.

    Parameters
    ----------
    architecture
        Its name in timm.
    model_args
        Further arguments of ``timm.create_model``.
    patch
        Side of a patch, pixels at ``mpp``.
    mpp
        µm per pixel it was trained at.
    mean, std
        Normalisation of pixel / 255, red, green, blue.
    class_names
        One name per logit.
    note
        What a user should be told once.
    classes
        How many logits there are.
    """

    architecture: str | None = None
    model_args: Mapping[str, Any] = field(default_factory=dict)
    patch: int | None = None
    mpp: float | None = None
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None
    class_names: tuple[str, ...] | None = None
    note: str | None = None
    classes: int | None = None

    def completed_by(self, other: Description) -> Description:
        """Return the description with what another one says where this one says nothing."""
        said = {name: value for name, value in vars(self).items() if value is not None and value != {}}
        return replace(other, **said)
