"""Faults, tried: what is lost when runs are killed, slides are damaged or odd, and disks are full.

    make faults
    python benchmarks/faults.py --only kills --times 5

- *kills*: a run over a slide is killed (SIGKILL) at a random moment, and the same command is run again; the
  result is compared, file for file, with that of a run that nobody has killed. Journals are written as often
  as there are batches, so that there is something to go on with in a short run.
- *damaged*: a folder of slides with damage of each kind (`tests/helpers/mutations.py`) is one run. Each slide
  is complete, or failed with a reason that names what is wrong.
- *tiles*: of slides of each kind, the compressed pixels of one tile are damaged (`damaged_tiles.py`). A slide
  is refused by name, or read as the strictest other decoder reads it. JPEG and JPEG 2000 in TIFFs that
  tifffile reads are also read where that one refuses, for imagecodecs keeps its warnings to itself: counted,
  and lost only where pixels become white or black.
- *odd*: slides of strange sizes and names, each with what has to come of it.
- *full*: a file system that is too small, and the same command when it is larger; needs the right to mount.

The table says how often each was tried, and how often something was lost: a result that is half written,
wrong or missing, a slide without a reason, a file that nobody needs, a worker that died, took more than its
time or more than its memory. Exit code 1 if anything was. Damage and moments follow from ``--seed``. Linux
only.
"""

from __future__ import annotations

import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory, TemporaryFile
from typing import Any

import click
import numpy as np
import tifffile
import torch

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from damaged_tiles import damaged_tiles  # noqa: E402

from tests.helpers.mutations import kinds_for, mutated  # noqa: E402
from tests.helpers.paths import REAL_SLIDES, SAMPLE  # noqa: E402
from tests.helpers.slides import pyramid, section, write_ome_tiff, write_svs, write_tiff  # noqa: E402
from wsi_saliency.cli import cli  # noqa: E402
from wsi_saliency.heatmap.result import Result  # noqa: E402
from wsi_saliency.messages import storable  # noqa: E402
from wsi_saliency.report.slides import COMPLETE, SlideRow, read_summary  # noqa: E402
from wsi_saliency.workflows import journal  # noqa: E402

OPTIONS = ("--model", "demo", "--device", "cpu", "--overlap", "0", "--quiet")
TIMEOUT = 120  # seconds a slide may take
MEMORY = 3 * 2**30  # bytes that a process may take
TIMES = (
    "started",
    "seconds",
    "slowest_station",
    "peak_memory_mb",
    "resumed",
)  # of a record; each run has its own


@dataclass
class Try:
    """What was tried, how often, what came of it, and what was lost."""

    name: str
    times: int = 0
    came: Counter[str] = field(default_factory=Counter)
    lost: list[str] = field(default_factory=list)

    def note(self, came: str, lost: str | None = None) -> None:
        """Note one try."""
        self.times += 1
        self.came[came] += 1
        if lost is not None:
            self.lost.append(lost)

    def row(self) -> str:
        """Return a line of the table."""
        came = ", ".join(f"{number} {what}" for what, number in sorted(self.came.items()))
        return f"| {self.name} | {self.times} | {came} | {len(self.lost) or 'nothing'} |"


def tissue(side: int) -> np.ndarray[Any, Any]:
    """Cut tissue out of the sample slide, (side, side, 3) uint8."""
    return np.asarray(tifffile.imread(SAMPLE)[1450 : 1450 + side, 1550 : 1550 + side])


def contents(folder: Path) -> dict[str, Any]:
    """All files of a result, but for pages and scripts, which say when and where it was made."""
    result = Result.read(folder)
    if result is None:
        return {}
    files = [path for path in folder.rglob("*") if path.is_file() and path.suffix not in (".html", ".groovy")]
    record = {key: value for key, value in result.record.items() if key not in TIMES}
    return {str(path.relative_to(folder)): path.read_bytes() for path in files} | {"run.json": record}


def wrong_with(folder: Path, expected: Mapping[str, Any]) -> str | None:
    """Say how a result differs from what it has to be, or what lies beside it that nobody needs."""
    found = contents(folder)
    differ = [name for name in expected.keys() | found.keys() if found.get(name) != expected.get(name)]
    stray = [path.name for path in folder.parent.iterdir() if path != folder]
    return f"other files: {sorted(differ)[:5]}, stray: {stray[:5]}" if differ or stray else None


# ------------------------------------------------------------------------------------------ killed runs


def started(slide: Path, out: Path) -> int:
    """Start a run in a process of its own, which has everything imported already."""
    child = os.fork()
    if child:
        return child
    try:
        arguments = ["run", str(slide), "-o", str(out), *OPTIONS, "--overlap", "0.5", "--batch", "4"]
        os._exit(cli(arguments, standalone_mode=False) or 0)
    except BaseException as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
    finally:
        os._exit(1)


def ended(child: int) -> bool:
    """Wait for a run; whether it has ended well."""
    return os.waitpid(child, 0)[1] == 0


def kills(here: Path, times: int, rng: random.Random) -> Iterator[Try]:
    """Kill runs, and run them again."""
    torch.set_num_threads(1)
    journal.SHORTEST, journal.COST = 0.0, 1e9
    slide = write_svs(here / "slide.svs", pyramid(tissue(1344), (1, 2)), quality=90)
    ended(started(slide, here / "warm"))
    start = time.monotonic()
    assert ended(started(slide, here / "whole"))
    seconds = time.monotonic() - start
    expected = contents(here / "whole" / "slide")
    found = Try("SIGKILL at a random moment, then the same command")
    for number in range(times):
        found.note(*killed(slide, here / f"out{number}", rng.uniform(0, 1.05 * seconds), expected))
    yield found


def killed(slide: Path, out: Path, after: float, expected: Mapping[str, Any]) -> tuple[str, str | None]:
    """Kill a run after some seconds, and run it again; say what came of it, and what was lost."""
    child = started(slide, out)
    time.sleep(after)
    os.kill(child, signal.SIGKILL)
    was_done = ended(child)
    half = contents(out / "slide")
    if half and half != expected:
        return "half written", f"a half-written result after {after:.1f} s"
    if not ended(started(slide, out)):
        return "not done", f"the second run failed, after {after:.1f} s"
    result = Result.read(out / "slide")
    resumed = result is not None and result.record["resumed"] > 0
    came = "done before" if half or was_done else "gone on with" if resumed else "done anew"
    return came, wrong_with(out / "slide", expected)


# ------------------------------------------------------------------------------------------ many slides


def run(slides: Path | str, out: Path, *options: str) -> tuple[int, str, int]:
    """Run the command line; returns its exit code, what it says, and the most bytes that a process held."""
    arguments = ["run", str(slides), "-o", str(out), *OPTIONS, *options]
    most = 0
    with TemporaryFile("w+", encoding="utf-8") as said:  # a pipe would be full at some time
        program = subprocess.Popen(
            [sys.executable, "-m", "wsi_saliency.cli", *arguments],
            cwd=out.parent,
            env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
            stderr=said,
            start_new_session=True,
        )
        while program.poll() is None:
            most = max(most, memory_of(program.pid))
            time.sleep(0.1)
        said.seek(0)
        return program.returncode, said.read(), most


def memory_of(session: int) -> int:
    """Return the most bytes that a process of a session has ever held."""
    most = 0
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if os.getsid(int(folder.name)) == session:
                found = re.search(r"VmHWM:\s+(\d+) kB", (folder / "status").read_text())
                most = max(most, 1024 * int(found[1]) if found else 0)
        except OSError:  # it has just ended
            continue
    return most


def outcomes(out: Path) -> dict[str, SlideRow]:
    """Return what became of each slide, by its file's name."""
    return {Path(row.slide).name: row for row in read_summary(out)}


def complete(out: Path) -> set[str]:
    """Return the folders with a complete result, as the table writes them."""
    return {
        storable(folder.relative_to(out).as_posix())
        for folder, files in ((Path(place), files) for place, _, files in os.walk(out))
        if "run.json" in files and Result.read(folder) is not None
    }


def judged(name: str, row: SlideRow | None, whole: Collection[str]) -> tuple[str, str | None]:
    """Say what came of a slide, and what was lost, given all folders with a complete result."""
    if row is None:
        return "no word", f"{name}: no word of it"
    if row.status == COMPLETE:
        return "complete", None if row.folder in whole else f"{name}: no result"
    bad = re.search(r"unexpected |the process died|stopped after", row.reason)
    if bad or not row.reason:
        return (bad[0].strip() if bad else "no reason"), f"{name}: {row.reason}"
    return "refused with a reason", None


def stray(out: Path) -> list[str]:
    """Return what lies about that nobody needs; half-done results are there to be gone on with."""
    growing = [path for path in out.rglob(".*.growing") if not (path / "wsi-saliency.journal").exists()]
    return [path.name for path in (*growing, *out.rglob(".*.lock"))]


def damaged(here: Path, times: int, rng: random.Random) -> Iterator[Try]:
    """Damage slides in each way, and run over all of them."""
    levels = pyramid(tissue(448), (1, 2))
    whole = [
        write_svs(here / "a.svs", levels, quality=90),
        write_tiff(here / "b.tif", levels),
        write_ome_tiff(here / "c.tiff", levels, quality=90),
        *(REAL_SLIDES / name for name in ("jpeg.dicom", "cmu-1-small-region.svs")),
    ]
    ways = [(path, kind) for path in whole if path.exists() for kind in kinds_for(path.read_bytes())]
    kind_of = {}
    for number in range(times):
        path, kind = ways[number % len(ways)]
        name = f"{number:03}-{path.name}"
        folder = here / "slides" / f"{number:03}"  # DICOM files in one folder may be one slide
        folder.mkdir(parents=True)
        (folder / name).write_bytes(mutated(path.read_bytes(), kind, rng))
        kind_of[name] = f"{'DICOM' if path.suffix == '.dicom' else 'TIFF'}: {kind}"
    code, said, most = run(here / "slides", here / "out", "--slide-timeout", str(TIMEOUT))
    tries = {kind: Try(kind) for kind in sorted(set(kind_of.values()))}
    rows, done = outcomes(here / "out"), complete(here / "out")
    for name, kind in kind_of.items():
        tries[kind].note(*judged(name, rows.get(name), done))
    yield from tries.values()
    yield batch_try(f"the run over these {times}", here / "out", (code, said, most))


def batch_try(name: str, out: Path, ran: tuple[int, str, int]) -> Try:
    """Judge a run over many slides as a whole."""
    code, said, most = ran
    found = Try(name)
    lost = [f"exit code {code}: {said[-500:]}"] if code not in (0, 1) or "Traceback" in said else []
    lost += [f"{most / 2**20:.0f} MiB of memory"] if most > MEMORY else []
    lost += [f"stray files: {names}"] if (names := stray(out)) else []
    found.note(f"at most {most / 2**20:.0f} MiB in a process", "; ".join(lost) or None)
    return found


def tiles(here: Path, times: int, rng: random.Random) -> Iterator[Try]:
    """Damage a tile of each kind of slide, so many times, and read the slide."""
    for name, verdicts in damaged_tiles(here, tissue(448), times, rng):
        found = Try(f"a damaged tile: {name}")
        for came, lost in verdicts:
            found.note(came, lost and f"{name}: {came}: {lost}")
        yield found


# -------------------------------------------------------------------------------------------- odd slides

DONE = "done"
STAIN = (0, 0, 10**6, 10**6)


def plain(w: int, h: int, *boxes: tuple[int, int, int, int]) -> Callable[[Path], object]:
    """Return what writes a slide of a size."""
    return lambda path: write_svs(path, [section(w, h, *boxes)])


def symlink_loop(path: Path) -> None:
    """Make a link to itself."""
    path.symlink_to(path.name)


ODD: dict[str, tuple[Callable[[Path], object], str]] = {
    "one-pixel.svs": (plain(1, 1, STAIN), DONE),
    "smaller-than-a-patch.svs": (plain(40, 30, STAIN), DONE),
    "narrow.svs": (plain(1, 100_000, STAIN), DONE),
    "empty-glass.svs": (plain(512, 512), DONE),
    "a link to itself.svs": (symlink_loop, "no file can be read there"),
    "with  spaces .svs": (plain(288, 192, STAIN), DONE),
    "quotes '\"`$(touch x).svs": (plain(288, 192, STAIN), DONE),
    "unicode é 漢字 🙂\u202e.svs": (plain(288, 192, STAIN), DONE),
    "-rf.svs": (plain(288, 192, STAIN), DONE),
    f"{'long' * 49}.svs": (plain(288, 192, STAIN), DONE),
    "line\nbreak.svs": (plain(288, 192, STAIN), DONE),
}
"""How each is made, and what has to come of it."""


def odd(here: Path, times: int, rng: random.Random) -> Iterator[Try]:
    """Run over odd slides, as a folder and as a list with a hostile path; and delete one while it is read."""
    (here / "slides").mkdir()
    for name, (make, _) in ODD.items():
        make(here / "slides" / name)
    ran = run(here / "slides", here / "out", "--slide-timeout", str(TIMEOUT))
    rows, done = outcomes(here / "out"), complete(here / "out")
    for name, (_, wanted) in ODD.items():
        found = Try(ascii(name) if len(name) < 60 else f"a name of {len(name)} characters")
        came, lost = judged(name, row := rows.get(storable(name)), done)
        if row and (row.status != COMPLETE if wanted == DONE else wanted not in row.reason):
            lost = f"{name}: {row.status} {row.reason}"
        found.note(came, lost)
        yield found
    yield batch_try("the run over these", here / "out", ran)
    yield hostile(here)
    yield deleted(here)


def hostile(here: Path) -> Try:
    """Name slides by paths that lead out of the output folder."""
    found = Try("paths that lead out of the output folder, in a list")
    plain(288, 192, STAIN)(here / "outside.svs")
    (here / "lists").mkdir()
    paths = ("../outside.svs", f"{here}/outside.svs", "x/../../outside.svs")
    (here / "lists" / "list.csv").write_text("path\n" + "\n".join(paths) + "\n")
    before = {path for path in here.rglob("*") if "hostile" not in path.parts}
    code, said, _ = run(here / "lists" / "list.csv", here / "hostile")
    made = {path for path in here.rglob("*") if "hostile" not in path.parts} - before
    found.note(f"exit code {code}", f"made {made}, {said[-300:]}" if made or code not in (0, 1) else None)
    return found


def deleted(here: Path) -> Try:
    """Delete a slide while it is read."""
    found = Try("deleted while it is read")
    slide = write_svs(here / "deleted.svs", pyramid(tissue(1344), (1, 2)), quality=90)
    child = started(slide, here / "deleted")
    while not list((here / "deleted").glob(".*.growing")):
        time.sleep(0.01)
    slide.unlink()
    done = ended(child)
    left = stray(here / "deleted") if (here / "deleted").exists() else []
    whole = not done or Result.read(here / "deleted" / "deleted") is not None
    found.note("complete" if done else "refused", None if whole and not left else f"left {left}")
    return found


# --------------------------------------------------------------------------------------------- full disks


def full(here: Path, times: int, rng: random.Random) -> Iterator[Try]:
    """Run on a file system that is too small, and again when it is larger."""
    found = Try("a full disk, then the same command with more room")
    slide = write_svs(here / "slide.svs", pyramid(tissue(1344), (1, 2)), quality=90)
    run(slide, here / "whole")
    expected = contents(here / "whole" / "slide")
    disk = here / "disk"
    for size in (4, 64, 256, 1024):  # kB
        disk.mkdir()
        mount = ["mount", "-t", "tmpfs", "-o", f"size={size}k", "tmpfs", str(disk)]
        if subprocess.run(mount, capture_output=True).returncode:
            found.came["skipped: cannot mount here"] += 1
            break
        try:
            code, said, _ = run(slide, disk / "out")
            clear = code == 0 or ("No space left" in said and len(said.splitlines()) == 1)
            subprocess.run(["mount", "-o", "remount,size=64M", str(disk)], check=True)
            again = run(slide, disk / "out")[0]
            lost = None if clear else f"{size} kB: {said[-300:]}"
            lost = lost or (wrong_with(disk / "out" / "slide", expected) if again == 0 else "not done")
            found.note("one clear line" if code else "had room", lost)
        finally:
            subprocess.run(["umount", str(disk)], check=True)
            shutil.rmtree(disk)
    yield found


TRIES = {
    "kills": (kills, 20),
    "damaged": (damaged, 300),
    "tiles": (tiles, 100),
    "odd": (odd, 1),
    "full": (full, 1),
}


@click.command(help=__doc__)
@click.option("--only", type=click.Choice(list(TRIES)), multiple=True, help="What to try; default: all.")
@click.option(
    "--times", type=int, help="How often, for kills, damaged and each kind of tiles; default: 20, 300, 100."
)
@click.option("--seed", default=0, help="Of damage and moments.")
def main(only: tuple[str, ...], times: int | None, seed: int) -> None:
    """Try faults, and print a table."""
    lost: list[str] = []
    print("| tried | times | what came of it | lost |\n|---|---|---|---|", flush=True)
    for name in only or TRIES:
        tried, often = TRIES[name]
        with TemporaryDirectory(prefix="faults-") as here:
            for found in tried(Path(here), times or often, random.Random(f"{seed} {name}")):
                print(found.row(), flush=True)
                lost += found.lost
    for line in lost:
        print(f"LOST: {line}")
    raise SystemExit(int(bool(lost)))


if __name__ == "__main__":
    main()
