"""Whether two versions of the program give the same results, number for number.

Runs the command line of another checkout and of this one on the same slides, and compares the maps' values of
all levels, what lies where, and the tables of patches. The settings stand in the names that both versions
know.

    git worktree add ../before VERSION
    python benchmarks/unchanged.py ../before sample_data/tumour_nests.svs slide.svs

Prints a line for each slide and map: ``same``, or by how much values differ. Exit code 1 if any differ.
"""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click
import numpy as np
import zarr

MAPS = (
    ("none", "gradient", "8"),
    ("backward-hook", "gradient", "8"),
    ("centred-hook", "deeplift", "16"),
    ("centred-hook", "gradient-x-activation", "4"),
    ("forward-hook", "deeplift", "8"),
    ("surrogate", "deeplift", "16"),
    ("backward-hook", "gradcam", "last"),
)
"""Method, attribution and layer."""


def run(checkout: Path, slide: Path, out: Path, which: tuple[str, str, str]) -> Path:
    """Run one version on a slide; returns the folder of the result."""
    method, attribution, layer = which
    options = ["--model", "demo", "--method", method, "--attribution", attribution, "--layer", layer]
    subprocess.run(
        [sys.executable, "-m", "wsi_saliency.cli", "run", str(slide), "-o", str(out), "--quiet", *options],
        check=True,
        env=os.environ | {"PYTHONPATH": str(checkout)},
        cwd=out.parent,
    )
    return out / slide.stem


def values_of(folder: Path) -> dict[str, np.ndarray[Any, Any]]:
    """Read all levels, the transforms and the numbers of the table of a result with one map."""
    group = zarr.open_group(folder / "saliency.ome.zarr", mode="r")
    multiscale: Any = group.attrs["multiscales"]
    found = {f"level {name}": np.asarray(array) for name, array in group.arrays()}
    found["transforms"] = np.array(
        [
            [
                *dataset["coordinateTransformations"][0]["scale"],
                *dataset["coordinateTransformations"][1]["translation"],
            ]
            for dataset in multiscale[0]["datasets"]
        ]
    )
    with (folder / "tiles.csv").open(encoding="utf-8") as file:
        found["tiles"] = np.array([[float(v) for v in row.values()] for row in csv.DictReader(file)])
    return found


def unlike(before: dict[str, np.ndarray[Any, Any]], now: dict[str, np.ndarray[Any, Any]]) -> list[str]:
    """Name what differs, and by how much."""
    words = [f"only one has {name}" for name in before.keys() ^ now.keys()]
    for name in sorted(before.keys() & now.keys()):
        a, b = before[name], now[name]
        if a.shape != b.shape:
            words.append(f"{name}: {a.shape} before, {b.shape} now")
        elif not np.array_equal(a, b):
            words.append(
                f"{name}: by up to {np.abs(a - b).max():.3g}, the largest value is {np.abs(a).max():.3g}"
            )
    return words


@click.command(help=__doc__)
@click.argument("before", type=click.Path(exists=True, path_type=Path))
@click.argument("slides", nargs=-1, required=True, type=click.Path(exists=True, path_type=Path))
def main(before: Path, slides: tuple[Path, ...]) -> None:
    """Compare two versions."""
    here, differ = Path(__file__).parents[1], False
    for slide in slides:
        for which in MAPS:
            with TemporaryDirectory() as folder:
                results = [
                    values_of(run(checkout.resolve(), slide.resolve(), Path(folder, name), which))
                    for name, checkout in (("before", before), ("now", here))
                ]
            words = unlike(*results)
            differ |= bool(words)
            print(f"{slide.name}  {' '.join(which)}: {'; '.join(words) or 'same'}", flush=True)
    raise SystemExit(int(differ))


if __name__ == "__main__":
    main()
