"""Tiles of a TIFF that can be decoded one at a time, without the library that reads boxes of a level."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from wsi_saliency.errors import SlideError
from wsi_saliency.slides.readers.stored import JPEG, StoredTiles
from wsi_saliency.slides.wording import library_says

if TYPE_CHECKING:
    import tifffile
    from numpy.typing import NDArray

_RGB, _YCBCR = 2, 6  # photometric interpretations


class DecodedTiles:
    """The pixels of the tiles or strips of one level; safe to use from several threads.

    Parameters
    ----------
    stored
        The tiles as the file holds them.
    page
        The directory that describes the level; its file may be closed.
    """

    def __init__(self, stored: StoredTiles, page: tifffile.TiffPage) -> None:
        self.stored = stored
        self._decode, self._jpeg_tables = page.decode, page.jpegtables
        self.is_rgb = page.planarconfig == 1 and page.samplesperpixel == 3
        self.is_rgb = self.is_rgb and page.photometric in (_RGB, _YCBCR)
        self.is_jpeg = page.compression in JPEG

    def read(self, index: int) -> NDArray[np.uint8] | None:
        """Read and decode a tile or strip as (h, w, samples) uint8; None if the file has no data for it.

        Raises
        ------
        SlideError
            If the data are damaged; with nothing but the reason.
        """
        data = self.stored.read(index)
        if data is None:
            return None
        try:
            segment, _, _ = self._decode(data, index, jpegtables=self._jpeg_tables)
        # Any exception: every codec has errors of its own.
        except Exception as error:
            raise SlideError(damaged(f"tile or strip {index}", "decoder", error)) from error
        decoded: NDArray[np.uint8] = np.asarray(segment)[0]
        return decoded


def damaged(what: str, library: str, error: Exception) -> str:
    """Say that something is damaged, and what a library says of it."""
    return f"{what} is damaged, or the copy is incomplete ({library_says(library, error)})"
