"""Where results stand in the end: a folder, or a place at a URL (`wsi_saliency.heatmap.url_shelf`).

A result always grows in a folder of this machine. What differs is said here, and nowhere else: who has to be
asked whether a result is there, and what is done with one that is finished.
"""

from __future__ import annotations

from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from wsi_saliency.errors import BusyError, OutputError
from wsi_saliency.files import check_folder, folders_above, locked, replacing, writing
from wsi_saliency.heatmap.result import RUN_JSON, Result
from wsi_saliency.working import half_done

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from contextlib import AbstractContextManager

    from wsi_saliency.urls import Location

    Make = Callable[[Path], Result]
    Stays = Callable[[Result], Result | None]
    Watch = Callable[[str, int], AbstractContextManager[Callable[[int], object]]]


@runtime_checkable
class Shelf(Protocol):
    """Where results stand in the end; ``str`` shows it. It can be sent to other processes and machines."""

    @property
    def folder(self) -> Path:
        """The folder of this machine in which results grow."""
        ...

    @property
    def shared_folder(self) -> Path | None:
        """The folder that all machines have to see, if results stand in one."""
        ...

    def where(self, name: Path) -> str:
        """Show where a result stands."""
        ...

    def check(self) -> None:
        """Find out what would stop every slide, before work begins.

        Raises
        ------
        OutputError
            If results cannot be there; `NoRoomError` if nothing can be written there.
        """
        ...

    def check_shared(self) -> None:
        """Find out whether other processes see it.

        Raises
        ------
        SettingsError
            If they do not.
        """
        ...

    def is_there(self) -> bool:
        """Whether the place itself is there now."""
        ...

    def has(self, name: str | Path) -> bool:
        """Whether there is a file of that name."""
        ...

    def results(self, names: Iterable[Path]) -> Iterator[Result | None]:
        """Yield the complete result of each name; None where there is none."""
        ...

    def standing(self, folders: Sequence[str]) -> set[str]:
        """Return those of some folders in which a result is."""
        ...

    def size(self, name: Path) -> int:
        """Return how many bytes a result takes."""
        ...

    def explained(self, name: Path, make: Make, stays: Stays, watch: Watch, how: Manner) -> Result:
        """Make a result, and put it where it stands in the end.

        Parameters
        ----------
        name
            The result.
        make
            Makes it in a folder, or adds to it what it lacks.
        stays
            Returns a complete result, if nothing is to be made of it or added to it.
        watch
            Shows how many files of it are there.
        how
            Whether a complete one is replaced, and whether it is waited for another run.
        """
        ...

    def is_busy(self, name: Path) -> bool:
        """Whether another run works on a result."""
        ...

    def clear(self, names: Sequence[Path]) -> None:
        """Clear away what dead processes of this run have left of results."""
        ...

    def half_done(self, names: Iterable[Path]) -> int:
        """Count the results that the same command goes on with."""
        ...

    def write(self, name: Path, text: str) -> None:
        """Write a small file beside the results."""
        ...

    def remove(self, name: Path, *, unlikely: bool) -> None:
        """Remove such a file, if it is there; where that takes long, not if it is unlikely."""
        ...

    def borrowed(self, *names: str) -> AbstractContextManager[Path]:
        """Yield a folder with some small files, if they are there, for nobody else to change meanwhile.

        Raises
        ------
        BusyError
            If somebody else has them.
        """
        ...


@dataclass(frozen=True)
class Manner:
    """How a result is made: a complete one replaced, another run waited for."""

    overwrite: bool = False
    wait: bool = True


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


def shelved(out: Location | Shelf, work: Path | None = None) -> Shelf:
    """Return the shelf that an output folder is, or a place at a URL, whose results grow below ``work``."""
    if isinstance(out, Path):
        return FolderShelf(out)
    if isinstance(out, Shelf):
        return out
    from wsi_saliency.heatmap.url_shelf import UrlShelf

    return UrlShelf(out, work and work.absolute())
