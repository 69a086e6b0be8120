"""Where the files of one model lie: a folder on this machine, or a repository of the Hub (`hub.HubRepo`)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from wsi_saliency.errors import ModelError

if TYPE_CHECKING:
    from pathlib import Path


class Files(Protocol):
    """The files of one model."""

    def file(self, *names: str) -> Path:
        """Return the local path of a file, the first of ``names`` that there is.

        Raises
        ------
        ModelError
            If there is none.
        """
        ...


@dataclass(frozen=True)
class Folder:
    """A folder on this machine."""

    path: Path

    def file(self, *names: str) -> Path:
        """Return the first of the files that there is."""
        found = (path for name in names if (path := self.path / name).is_file())
        if (first := next(found, None)) is None:
            raise ModelError(
                f"{self.path} has no {' or '.join(names)}; it is not the folder of a model, or not all of it"
            )
        return first
