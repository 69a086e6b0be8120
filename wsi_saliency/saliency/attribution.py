"""Attributions: functions of a layer's activation and its gradient, before the mean over channels."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from wsi_saliency.settings import Attribution


def gradient(activation: Tensor, gradient: Tensor) -> Tensor:
    """Return ∂y/∂A."""
    return gradient


def gradient_x_activation(activation: Tensor, gradient: Tensor) -> Tensor:
    """Return A · ∂y/∂A."""
    return activation * gradient


ATTRIBUTION: dict[Attribution, Callable[[Tensor, Tensor], Tensor]] = {
    "gradient": gradient,
    "gradient-x-activation": gradient_x_activation,
}
"""Functions of a layer's activation and its gradient, both (N, C, h, w); they return the same shape."""
