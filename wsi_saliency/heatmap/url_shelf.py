"""Results that stand at a URL: each grows in a folder of this machine, and goes there when it is complete.

All other files are put there first, and ``run.json`` last; of an older result ``run.json`` is removed first.
So what stands at the URL is complete or has no ``run.json``. What is finished and could not be put there
stays on this machine; the next run needs only to put it there.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from functools import cached_property
from hashlib import sha256
from itertools import islice
from pathlib import Path, PurePosixPath
from secrets import token_hex
from typing import TYPE_CHECKING

from wsi_saliency.claims import Claim, Owner, claimed
from wsi_saliency.errors import BusyError, NoRoomError, OutputError, SettingsError
from wsi_saliency.files import folders_above, growing, locked, user_cache, writing
from wsi_saliency.heatmap.exports import is_export
from wsi_saliency.heatmap.result import MAP, REPORT, RUN_JSON, TILES, Result
from wsi_saliency.remote import Remote
from wsi_saliency.working import half_done, hidden

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from upath import UPath

    from wsi_saliency.heatmap.shelf import Make, Manner, Stays, Watch

_AT_ONCE = 256  # results that are asked for together
_PRIVATE = ("memory",)  # kinds of URLs that no other process sees
_OURS = (RUN_JSON, TILES, REPORT, f"{MAP}.*", "overview*.png")


@dataclass(frozen=True)
class UrlShelf:
    """Results stand at a URL.

    Parameters
    ----------
    place
        The URL.
    work
        Folder of this machine below which results grow; None: one of the user's own, see `_own_folder`.
    run
        Tells the runs apart that are at work on it.
    """

    place: UPath
    work: Path | None = None
    run: str = field(default_factory=lambda: token_hex(8))

    def __str__(self) -> str:
        return str(self._remote)

    @cached_property
    def _remote(self) -> Remote:
        return Remote(self.place)

    @cached_property
    def _known(self) -> set[str]:
        """Folders in which a result was seen."""
        return set()

    def __getstate__(self) -> dict[str, object]:
        """Leave out what another machine finds out by itself."""
        return {"place": self.place, "work": self.work, "run": self.run}

    @property
    def folder(self) -> Path:
        """The folder of this machine in which results grow; each URL has its own."""
        return (self.work or _own_folder()) / sha256(str(self).encode()).hexdigest()[:16]

    @property
    def shared_folder(self) -> None:
        """None: all machines see the URL."""

    def where(self, name: Path) -> str:
        """Show where a result stands."""
        return f"{self}/{name.as_posix()}"

    def check(self) -> None:
        """Make the folder of this machine, write a tiny file at the URL, and remove both."""
        if self.work is None:
            _make_private(self.folder.parent)
        with _naming_work(), writing(self.folder), folders_above(self.folder / RUN_JSON):
            pass
        name = f".{token_hex(8)}.wsi-saliency"
        try:
            self._remote.write(name, b"", tries=2)
        except OutputError as error:
            raise NoRoomError(f"{error}; choose another place with -o") from error
        with suppress(OutputError):  # writing is what matters
            self._remote.remove([name])

    def check_shared(self) -> None:
        """Refuse what is only in the memory of this process."""
        if (scheme := self.place.protocol) in _PRIVATE:
            raise SettingsError(
                f"{self}: other processes do not see {scheme}:// URLs; give one slide, without --engine ray "
                "and --slide-timeout, or another place with -o"
            )

    def is_there(self) -> bool:
        """Return True: a store has no folders that could go."""
        return True

    def has(self, name: str | Path) -> bool:
        """Whether there is a file of that name."""
        return self._remote.read([PurePosixPath(name).as_posix()]) != [None]

    def results(self, names: Iterable[Path]) -> Iterator[Result | None]:
        """Read many ``run.json`` at a time."""
        waiting = iter(names)
        while some := list(islice(waiting, _AT_ONCE)):
            contents = self._remote.read([f"{name.as_posix()}/{RUN_JSON}" for name in some])
            for name, content in zip(some, contents, strict=True):
                result = self._parsed(name, content)
                if result:
                    self._known.add(name.as_posix())
                    self._forget_sent(name, result)
                yield result

    def _parsed(self, name: Path, content: bytes | None) -> Result | None:
        return None if content is None else Result.parsed(self.folder / name, content, self.where(name))

    def _forget_sent(self, name: Path, result: Result) -> None:
        """Remove a result of this machine that is at the URL: its run was killed before it could."""
        here = Result.read(self.folder / name)
        if here and here.record == result.record:
            self._drop(name)

    def standing(self, folders: Sequence[str]) -> set[str]:
        """Return those of some folders in which a result is, or was when it was last looked for."""
        unknown = [folder for folder in folders if folder not in self._known]
        contents = self._remote.read([f"{folder}/{RUN_JSON}" for folder in unknown])
        self._known.update(f for f, content in zip(unknown, contents, strict=True) if content is not None)
        return self._known.intersection(folders)

    def size(self, name: Path) -> int:
        """Return how many bytes a result takes."""
        return sum(self._remote.sizes(name.as_posix()).values())

    # ------------------------------------------------------------------------------------- a result

    def explained(self, name: Path, make: Make, stays: Stays, watch: Watch, how: Manner) -> Result:
        """Make a result here, from what is at the URL if that lacks something, and put it there."""
        if self.work is None:
            _make_private(self.folder.parent)
        with self._alone(name, wait=how.wait) as still_ours:
            there = None if how.overwrite else next(self.results([name]))
            if there and (kept := stays(there)):
                return kept
            result = self._ready(name, stays, there)
            if result is None:
                result = self._made(name, make, there, watch)
                if result.kept and not result.exported:
                    self._drop(name)
                    return replace(result, url=self.where(name))
            self._deliver(name, still_ours, watch)
            return replace(result, url=self.where(name))

    @contextmanager
    def _alone(self, name: Path, *, wait: bool) -> Iterator[Callable[[], None]]:
        """Have a result to oneself: on this machine by a lock, between machines by a file at the URL."""
        with self._shown_as_url(), locked(self._turn(name), wait=wait):
            claim = self._claim(name)
            with claimed(claim, self.where(name), wait=wait) as still_ours:
                yield still_ours
        self._remove_empty(name)

    def _remove_empty(self, name: Path) -> None:
        """Remove the folders above a result that are left empty, by a run that was killed, too."""
        with suppress(OSError):
            for inside in name.parents:
                (self.folder / inside).rmdir()

    def _turn(self, name: Path) -> Path:
        return self.folder / name.with_name(f"{name.name}.turn")

    def _claim(self, name: Path) -> Claim:
        return Claim(self._remote, hidden(name, "lock").as_posix(), Owner(self.run, str(self.folder)))

    @contextmanager
    def _shown_as_url(self) -> Iterator[None]:
        """Let who has to wait read of the place that the user knows."""
        try:
            yield
        except BusyError as error:
            raise BusyError(str(error).replace(str(self.folder), str(self))) from error

    def _ready(self, name: Path, stays: Stays, there: Result | None) -> Result | None:
        """Return a finished result that only has to be put there; another one that is here is removed."""
        here = Result.read(self.folder / name)
        if here is None:
            return None
        kept = stays(here)
        lost = {found.spec for found in there.maps} - {found.spec for found in here.maps} if there else ()
        if kept and not kept.differences and not lost:
            return replace(kept, kept=False)
        self._drop(name)
        return None

    def _made(self, name: Path, make: Make, there: Result | None, watch: Watch) -> Result:
        if there:
            self._fetch(name, watch)
        try:
            with _naming_work():
                return make(self.folder / name)
        finally:
            if there and (here := Result.read(self.folder / name)) and here.record == there.record:
                self._drop(name)  # nothing was added

    def _fetch(self, name: Path, watch: Watch) -> None:
        """Copy a result from the URL, whole or not at all; files of others stay there."""
        names = [file for file in self._remote.sizes(name.as_posix()) if _is_ours(file)]
        if strange := [file for file in names if not _is_plain(file)]:
            raise OutputError(f"{self.where(name)}: {strange[0]!r} cannot be the name of a file here")
        folder = self.folder / name
        with locked(folder), growing(folder) as work, watch("download", len(names)) as advance:
            self._remote.fetch({f"{name.as_posix()}/{file}": work / file for file in names}, advance)

    # ------------------------------------------------------------------------------------- putting it there

    def _deliver(self, name: Path, still_ours: Callable[[], None], watch: Watch) -> None:
        """Put a finished result in the place of whatever is at the URL, and remove it here.

        Raises
        ------
        OutputError
            If it cannot be put there; `NoRoomError` if nothing else can be either.
        """
        try:
            self._put(name, still_ours, watch)
        except BusyError:
            self._drop(name)  # what the other run makes counts
            raise
        except OutputError as error:
            self.check()
            stays = f"the finished result stays in {self.folder / name}, the same command puts it there"
            raise OutputError(f"{error}; {stays}") from error
        self._known.add(name.as_posix())
        self._drop(name)

    def _put(self, name: Path, still_ours: Callable[[], None], watch: Watch) -> None:
        files = _files_of(self.folder / name)
        there = self._remote.sizes(name.as_posix())
        if foreign := sorted(file for file in there if "/" in file and not _is_ours(file)):
            raise OutputError(
                f"{self.where(name)}: holds more than a result ({foreign[0]}); move that, "
                "or choose another place with -o"
            )
        still_ours()
        if RUN_JSON in there:
            self._remote.remove([self._in(name, RUN_JSON)])
        self._remote.remove(self._in(name, file) for file in there if _is_ours(file) and file not in files)
        others = {self._in(name, file): path for file, path in files.items() if file != RUN_JSON}
        with watch("upload", len(others)) as advance:

            def some_are_there(count: int) -> None:
                advance(count)
                still_ours()

            self._remote.put(others, some_are_there)
        self._check_sizes(name, {file: path.stat().st_size for file, path in files.items()})
        still_ours()
        self._remote.put({self._in(name, RUN_JSON): files[RUN_JSON]})

    def _check_sizes(self, name: Path, sizes: dict[str, int]) -> None:
        """Find out whether what is there is what was put there, and nothing of another run."""
        there = self._remote.sizes(name.as_posix())
        for file in sorted({*sizes, *filter(_is_ours, there)} - {RUN_JSON}):
            if there.get(file) != sizes.get(file):
                raise OutputError(
                    f"{self.where(name)}/{file}: is not what was put there; does another run write?"
                )

    def _in(self, name: Path, file: str) -> str:
        return f"{name.as_posix()}/{file}"

    def _drop(self, name: Path) -> None:
        """Remove a result of this machine; what is half removed never looks like one that is there."""
        folder = self.folder / name
        sent = hidden(folder, "sent")
        shutil.rmtree(sent, ignore_errors=True)  # of a run that was killed
        with suppress(OSError):
            folder.rename(sent)
        shutil.rmtree(sent, ignore_errors=True)

    # ----------------------------------------------------------------------------------- other runs and files

    def is_busy(self, name: Path) -> bool:
        """Whether a run on this machine or on another one has it."""
        try:
            with locked(self._turn(name), wait=False):
                return self._claim(name).holder() is not None
        except BusyError:
            return True
        except OutputError:  # whoever runs the slide says so
            return False

    def clear(self, names: Sequence[Path]) -> None:
        """Clear away what dead processes have left here, and their claims."""
        claims = []
        for name in names:
            with suppress(OutputError), locked(self._turn(name), wait=False):
                claims.append(self._claim(name))
                with locked(self.folder / name, wait=False):
                    pass
        with suppress(OutputError):
            contents = self._remote.read([claim.name for claim in claims])
            left = zip(claims, contents, strict=True)
            self._remote.remove(c.name for c, content in left if content and c.holder_in(content) is None)

    def half_done(self, names: Iterable[Path]) -> int:
        """Count what grows here, and what is finished and not at the URL."""
        names = list(names)
        finished = sum((self.folder / name / RUN_JSON).is_file() for name in names)
        return finished + half_done(self.folder / name for name in names)

    def write(self, name: Path, text: str) -> None:
        """Write a small file at the URL."""
        self._remote.write(name.as_posix(), text.encode("utf-8", "replace"))

    def remove(self, name: Path, *, unlikely: bool) -> None:
        """Remove a file from the URL, unless nobody expects it there."""
        if not unlikely:
            with suppress(OutputError):
                self._remote.remove([name.as_posix()])

    @contextmanager
    def borrowed(self, *names: str) -> Iterator[Path]:
        """Copy the files to a folder of this machine, and those that were changed back."""
        with self._alone(Path(names[0]), wait=False), tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            before = dict(zip(names, self._remote.read(names), strict=True))
            for name, content in before.items():
                if content is not None:
                    (folder / name).write_bytes(content)
            try:
                yield folder
            except OutputError as error:
                raise type(error)(str(error).replace(str(folder), str(self))) from error
            changed = [
                name
                for name in names
                if (folder / name).exists() and (folder / name).read_bytes() != before[name]
            ]
            # As files they get a type of their own, so that a browser shows the page.
            self._remote.put({name: folder / name for name in changed})


@contextmanager
def _naming_work() -> Iterator[None]:
    """Let errors of the folder of this machine name the option that chooses another."""
    try:
        yield
    except OutputError as error:
        raise type(error)(str(error).replace("with -o", "with --work")) from error


def _files_of(folder: Path) -> dict[str, Path]:
    """Return all files below a folder, by their names relative to it with slashes."""
    return {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}


def _is_ours(file: str) -> bool:
    """Whether a file of this name, relative to a result's folder, belongs to the result."""
    top = file.split("/", 1)[0]
    return any(fnmatchcase(top, pattern) for pattern in _OURS) or is_export(top)


def _is_plain(file: str) -> bool:
    """Whether a name leads to a file below a folder, on any machine: stores allow names that do not."""
    parts = file.split("/")
    return not any(part in ("", ".", "..") or set(part) & set("\\:\0") for part in parts)


def _own_folder() -> Path:
    """Return the user's folder for what grows here: on the disk for temporary files, if one is named.

    On clusters that is a fast disk of the machine; the home folder, with the usual cache, often is far away.
    """
    if temporary := os.environ.get("TMPDIR"):
        user = os.geteuid() if hasattr(os, "geteuid") else "own"
        return Path(temporary) / f"wsi-saliency-{user}"
    return user_cache("results")


def _make_private(folder: Path) -> None:
    """Make a folder that nobody else can write to, in one that perhaps all can.

    Raises
    ------
    OutputError
        If somebody else has made it.
    """
    with writing(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileExistsError):
            folder.mkdir(mode=0o700)
        if hasattr(os, "geteuid") and (folder.is_symlink() or folder.stat().st_uid != os.geteuid()):
            raise OutputError(f"{folder}: belongs to somebody else; choose another folder with --work")
