"""Results that stand in a folder: the one in which they grow."""

from __future__ import annotations

from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from wsi_saliency.errors import BusyError, OutputError
from wsi_saliency.files import check_folder, folders_above, locked, replacing, writing
from wsi_saliency.heatmap.result import RUN_JSON, Result
from wsi_saliency.working import half_done

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from wsi_saliency.heatmap.shelf import Make, Manner, Stays, Watch


@dataclass(frozen=True)
class FolderShelf:
    """Results stand in the folder in which they grow.

    Parameters
    ----------
    folder
        The output folder.
    """

    folder: Path

    def __str__(self) -> str:
        return str(self.folder)

    @property
    def shared_folder(self) -> Path:
        """The folder itself."""
        return self.folder

    def where(self, name: Path) -> str:
        """Show where a result stands."""
        return str(self.folder / name)

    def check(self) -> None:
        """Make sure that no file stands where the folder is wanted."""
        check_folder(self.folder)

    def check_shared(self) -> None:
        """Find nothing: other processes see folders."""

    def is_there(self) -> bool:
        """Whether the folder is there."""
        return self.folder.exists()

    def has(self, name: str | Path) -> bool:
        """Whether there is a file of that name."""
        return (self.folder / name).exists()

    def results(self, names: Iterable[Path]) -> Iterator[Result | None]:
        """Read one result after another."""
        return (Result.read(self.folder / name) for name in names)

    def standing(self, folders: Sequence[str]) -> set[str]:
        """Return those of some folders in which a result is."""
        return {folder for folder in folders if self.has(Path(folder, RUN_JSON))}

    def size(self, name: Path) -> int:
        """Return how many bytes a result takes."""
        return sum(path.stat().st_size for path in (self.folder / name).rglob("*") if path.is_file())

    def explained(self, name: Path, make: Make, stays: Stays, watch: Watch, how: Manner) -> Result:
        """Make a result: whoever makes it puts it in its place."""
        return make(self.folder / name)

    def is_busy(self, name: Path) -> bool:
        """Whether another run has the lock."""
        try:
            with locked(self.folder / name, wait=False):
                return False
        except BusyError:
            return True
        except OutputError:  # whoever runs the slide says so
            return False

    def clear(self, names: Sequence[Path]) -> None:
        """Let whoever takes the lock find what is left."""
        for name in names:
            with suppress(OutputError), locked(self.folder / name, wait=False):
                pass

    def half_done(self, names: Iterable[Path]) -> int:
        """Count the working folders with a journal."""
        return half_done(self.folder / name for name in names)

    def write(self, name: Path, text: str) -> None:
        """Write a small file, whole or not at all."""
        file = self.folder / name
        with folders_above(file), replacing(file) as part, writing(file, "file"):
            part.write_text(text, encoding="utf-8", errors="replace")

    def remove(self, name: Path, *, unlikely: bool) -> None:
        """Remove a file if it is there; that takes no time."""
        with suppress(OSError):
            (self.folder / name).unlink(missing_ok=True)

    @contextmanager
    def borrowed(self, *names: str) -> Iterator[Path]:
        """Have the lock of the first file; the others go with it."""
        with locked(self.folder / names[0], "file", wait=False):
            yield self.folder
