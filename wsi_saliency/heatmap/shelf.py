"""Where results stand in the end: what a folder (`folder_shelf`) and a URL (`url_shelf`) have in common.

A result always grows in a folder of this machine. What differs is said here, and nowhere else: who has to be
asked whether a result is there, and what is done with one that is finished.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from contextlib import AbstractContextManager
    from pathlib import Path

    from wsi_saliency.heatmap.result import Result

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
