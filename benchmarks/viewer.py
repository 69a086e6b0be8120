"""How soon the local page shows something, on a made pyramidal TIFF of 20 000 × 20 000 pixels.

    python benchmarks/viewer.py                 # 20 000 pixels a side
    python benchmarks/viewer.py --side 4000

First view: facts, the slide's tiles of a whole view, and the map's coarsest tile, asked for at once after the
start. Then tiles of the finest level, cold and warm (asked for a second time), and tiles of the map.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from http.client import HTTPConnection
from pathlib import Path
from threading import Thread

import click
import numpy as np
import tifffile
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.helpers.results import Planted
from wsi_saliency.geometry import Placement, Size
from wsi_saliency.heatmap.result import RUN_JSON, Result
from wsi_saliency.viewer.server import Server
from wsi_saliency.viewer.site import Site

TILE, CELL = 512, 16
FACTORS = (1, 4, 16)


def tissue(rng: np.random.Generator) -> NDArray[np.uint8]:
    """Draw a tile of stained grain."""
    grain = np.kron(rng.normal(0, 25, (TILE // 8, TILE // 8)), np.ones((8, 8)))
    return np.clip(np.array((175, 90, 150)) + grain[..., None], 0, 255).astype(np.uint8)


def write_slide(path: Path, side: int) -> None:
    """Write a slide tile by tile; memory does not matter."""
    picture = tissue(np.random.default_rng(0))
    with tifffile.TiffWriter(path, bigtiff=True) as tiff:
        for number, factor in enumerate(FACTORS):
            length = side // factor
            tiles: Iterator[NDArray[np.uint8]] = (picture for _ in range((-(-length // TILE)) ** 2))
            tiff.write(
                tiles,
                shape=(length, length, 3),
                dtype=np.uint8,
                tile=(TILE, TILE),
                photometric="rgb",
                compression="jpeg",
                subfiletype=int(number > 0),
                resolution=(40_000, 40_000),
                resolutionunit="CENTIMETER",
            )


def made_result(folder: Path, side: int) -> Result:
    """Write a slide, and a result of noise with a patch for every 448 pixels."""
    write_slide(folder / "slide.tif", side)
    rng = np.random.default_rng(1)
    values = rng.random((1, side // CELL, side // CELL), np.float32)
    tiles = [
        ((x, y, 448, 448), (float(rng.random()),), (0.5, float(rng.random())))
        for y in range(0, side - 448, 448)
        for x in range(0, side - 448, 448)
    ]
    how = Planted("slide.tif", str(folder), Size(side, side), placement=Placement(-8, -8, CELL, CELL))
    made = how.write(folder / "result", [values], tiles)
    facts = made.record["slide"] | {"bytes": (folder / "slide.tif").stat().st_size}
    (made.folder / RUN_JSON).write_text(json.dumps(made.record | {"slide": facts}))
    result = Result.read(made.folder)
    assert result is not None
    return result


def timed(ask: Callable[[str], bytes], paths: list[str]) -> list[float]:
    """Ask for paths one after another; returns milliseconds."""
    spent = []
    for path in paths:
        start = time.perf_counter()
        assert ask(path)
        spent.append(1000 * (time.perf_counter() - start))
    return spent


def report(name: str, spent: list[float]) -> float:
    """Print what a kind of request takes."""
    median = statistics.median(spent)
    print(f"{name:<32}{len(spent):>4} requests, median {median:7.2f} ms, longest {max(spent):7.2f} ms")
    return median


@click.command()
@click.option("--side", default=20_000, help="Pixels of a side of the slide.")
def main(side: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        result = made_result(Path(folder), side)
        start = time.perf_counter()
        with Site([result]) as site, Server(site) as server:
            Thread(target=server.serve_forever, daemon=True).start()
            connection = HTTPConnection(*server.server_address[:2])

            def ask(path: str) -> bytes:
                connection.request("GET", f"/{site.token}/r/0/{path}")
                reply = connection.getresponse()
                body = reply.read()
                return body if reply.status == 200 else b""

            facts = json.loads(ask("facts.json"))
            coarse, finest = facts["tiles"]["min_level"], facts["tiles"]["max_level"]
            timed(ask, [f"slide/{coarse + 1}/{x}_{y}.jpg" for y in range(2) for x in range(2)])
            timed(ask, [f"map/0/0/{len(facts['maps'][0]['levels']) - 1}/0_0.f32"])
            print(f"first view of {side} × {side} pixels: {1000 * (time.perf_counter() - start):.0f} ms")
            middle = side // 2 // TILE
            near = [f"slide/{finest}/{middle + x}_{middle + y}.jpg" for y in range(4) for x in range(4)]
            cold = report("slide tile, finest level, cold", timed(ask, near))
            warm = report("slide tile, finest level, warm", timed(ask, near))
            cells = [f"map/0/0/0/{x}_{y}.f32" for y in range(2) for x in range(2)]
            report("map tile, finest level", timed(ask, cells))
            print(f"warm tiles come {cold / warm:.1f} times as fast as cold ones")
            server.shutdown()


if __name__ == "__main__":
    main()
