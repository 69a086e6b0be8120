"""Which map: of a layer, by a method and an attribution. A run makes one map or several of each slide."""

from __future__ import annotations

import re
from dataclasses import dataclass
from hashlib import sha256
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from wsi_saliency.settings import Attribution, Method

_NOT_IN_FILES = re.compile(r"[^A-Za-z0-9_.-]")

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
        """Name in file names, columns and records, such as ``layer3.centred-hook.deeplift``.

        A layer may be called anything. Where its name does not suit files, a part of its hash keeps it apart
        from a layer that is called almost so.
        """
        layer = _NOT_IN_FILES.sub("_", self.layer)
        if layer != self.layer:
            layer += f"-{sha256(self.layer.encode('utf-8', 'surrogatepass')).hexdigest()[:8]}"
        return ".".join((layer, self.method, self.attribution))
