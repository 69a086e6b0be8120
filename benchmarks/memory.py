"""How much memory a slide takes: the peak of a run on a small and on a large one, each in its own process.

    python benchmarks/memory.py                          # 8 000² and 64 000² pixels; minutes
    python benchmarks/memory.py --side 4000 --side 16000
    python benchmarks/memory.py --patches                # what the patches of a full slide take

The slides are made: one level of JPEG tiles at 0.5 µm per pixel. The first is full of tissue. On the others,
a band of tissue goes over the whole width and one over the whole height. So all that is as wide or as high as
the slide has its full size, in minutes and not in hours: blocks that wait for the next row of patches, rows
of the map, tissue mask, overview, the map's files. What a run holds for each patch is small there, since the
bands have few; ``--patches`` measures it: the patches of a slide full of tissue are planned and cut, from
blank blocks that nobody decodes, overlapping by a half and then by four fifths, which takes the same blocks
and five times as many patches.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
from itertools import islice
from pathlib import Path

import click
import numpy as np

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from made_slides import banded, full, write_tiled  # noqa: E402

from wsi_saliency.geometry import Canvas, TileGrid, TileSelection  # noqa: E402
from wsi_saliency.slides.blocks import BLOCK, PatchReader  # noqa: E402
from wsi_saliency.slides.tissue import TissueMask  # noqa: E402
from wsi_saliency.workflows.canvas import tissue_shares  # noqa: E402


class NoSlide:
    """Is read at once."""

    blank = np.full((BLOCK, BLOCK, 3), 255, np.uint8)

    def read(self, region: object, size: object) -> np.ndarray:
        """Return a new block, as a slide does."""
        return self.blank.copy()


def peak_of_run(folder: Path, slide: Path) -> tuple[float, int, float]:
    """Run a slide in a process of its own; return its peak in MB, patches and seconds."""
    out = folder / "out"
    command = [sys.executable, str(ROOT / "cli.py"), "run", str(slide), "-o", str(out), "--overlap", "0"]
    subprocess.run([*command, "--model", "demo", "--device", "cpu"], check=True, capture_output=True)
    record = json.loads((out / slide.stem / "run.json").read_text())
    return record["peak_memory_mb"], record["patches"]["tissue"], record["seconds"]["total"]


def print_peaks(folder: Path, sides: tuple[int, ...]) -> None:
    peaks: list[float] = []
    for side in sides:
        slide = folder / f"{side}.tif"
        write_tiled(slide, side, banded(side) if peaks else full)
        peak, n, seconds = peak_of_run(folder, slide)
        peaks.append(peak)
        print(f"{side}²: {peak:.0f} MB, {peak / peaks[0]:.3f} of the first; {n} patches, {seconds:.0f} s")


def peak() -> float:
    """Return the largest size of this process so far, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def plan_and_cut(side: int, stride: int) -> int:
    """Plan all patches of a slide that is tissue all over, cut a few rows of them; return how many there are.

    Their order is planned before the first is cut, and some rows hold as many blocks as ever.
    """
    grid = TileGrid(Canvas(side, side, 1.0, 1.0), 224, stride, 16)
    shares = tissue_shares(grid, TissueMask(np.ones((2000, 2000), bool), side / 2000, side / 2000))
    wanted = np.flatnonzero(shares >= 0.5)
    tiles, kept = TileSelection(grid, wanted), shares[wanted]
    del shares, wanted
    rows = 2 * BLOCK // stride + 2
    for _ in islice(PatchReader(NoSlide(), grid, tiles, 4), rows * len(grid.canvas_xs)):  # type: ignore[arg-type]
        pass
    return len(kept)


def print_patches(side: int) -> None:
    """Say by how much patches let memory grow: blocks are the same for any overlap, patches are not."""
    start = peak()
    few, before = plan_and_cut(side, 112), peak()
    many, after = plan_and_cut(side, 48), peak()
    each = (after - before) * 2**20 / (many - few)
    print(f"{side}²: {few} patches and two rows of blocks {before - start:.0f} MB; {many} patches")
    print(f"{after - before:.0f} MB more, {each:.0f} bytes each")


@click.command()
@click.option("--side", "sides", multiple=True, default=(8_000, 64_000), help="Pixels.")
@click.option("--patches", is_flag=True, help="Measure what the patches of the largest slide take.")
def main(sides: tuple[int, ...], patches: bool) -> None:
    if patches:
        print_patches(max(sides))
        return
    with tempfile.TemporaryDirectory() as folder:
        print_peaks(Path(folder), sides)


if __name__ == "__main__":
    main()
