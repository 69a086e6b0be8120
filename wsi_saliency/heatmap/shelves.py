"""The shelf that an output folder is, or a place at a URL."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from wsi_saliency.heatmap.folder_shelf import FolderShelf
from wsi_saliency.heatmap.shelf import Shelf

if TYPE_CHECKING:
    from wsi_saliency.urls import Location


def shelved(out: Location | Shelf, work: Path | None = None) -> Shelf:
    """Return the shelf that an output folder is, or a place at a URL, whose results grow below ``work``."""
    if isinstance(out, Path):
        return FolderShelf(out)
    if isinstance(out, Shelf):
        return out
    from wsi_saliency.heatmap.url_shelf import UrlShelf  # which needs what reaches URLs

    return UrlShelf(out, work and work.absolute())
