"""Which map: of a layer, by a method and an attribution. A run makes one map or several of each slide."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from wsi_saliency.settings import Attribution, Method

PLAIN: Method = "none"
"""The method that smooths nothing, which all others are compared with."""


@dataclass(frozen=True)
class MapSpec:
    """One map of a slide; it has a channel for each target.

    Parameters
    ----------
    layer
        Module name, or ``"input"``.
    method
        How gradients are smoothed.
    attribution
        What is computed from them.
    """

    layer: str
    method: Method
    attribution: Attribution

    @property
    def name(self) -> str:
        """Name in file names, columns and records, such as ``layer3.centred-hook.deeplift``."""
        return ".".join((self.layer.replace("/", "_"), self.method, self.attribution))
