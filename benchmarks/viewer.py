"""How soon the local page shows something, on a made pyramidal TIFF of 100 000 × 80 000 pixels.

    python benchmarks/viewer.py                 # 300 MB in a folder for temporary files, removed at the end
    python benchmarks/viewer.py --width 4000 --height 3000
    python benchmarks/viewer.py --factors 1,4,16     # as if the scanner had written no smaller level

First view: what a browser asks for at once after the start, on a window of 1280 × 800: facts, and tiles of
the whole slide and its map. Then tiles of the finest level, cold and warm (asked for a second time), of a
level between two of the file's, and tiles of the map. Aims: a first view in 2 s, a warm tile in 50 ms.
"""

from __future__ import annotations

import json
import math
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from http.client import HTTPConnection
from itertools import repeat
from pathlib import Path
from threading import Thread
from typing import Any

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
TILED: dict[str, Any] = {"tile": (TILE, TILE), "compression": "jpeg"}


def tissue(rng: np.random.Generator) -> NDArray[np.uint8]:
    """Draw a tile of stained grain."""
    grain = np.kron(rng.normal(0, 25, (TILE // 8, TILE // 8)), np.ones((8, 8)))
    return np.clip(np.array((175, 90, 150)) + grain[..., None], 0, 255).astype(np.uint8)


def encoded(folder: Path) -> bytes:
    """Compress one tile, which is then repeated: that is fast, and each is still decoded like any other."""
    path = folder / "tile.tif"
    tifffile.imwrite(path, tissue(np.random.default_rng(0)), photometric="rgb", **TILED)
    with tifffile.TiffFile(path) as tiff:
        page = tiff.pages.first
        tiff.filehandle.seek(page.dataoffsets[0])
        return tiff.filehandle.read(page.databytecounts[0])


def write_slide(path: Path, size: Size, factors: list[int]) -> None:
    """Write a slide of one tile, again and again."""
    tile = encoded(path.parent)
    with tifffile.TiffWriter(path, bigtiff=True) as tiff:
        for number, factor in enumerate(factors):
            w, h = size.w // factor, size.h // factor
            tiff.write(
                repeat(tile, -(-w // TILE) * -(-h // TILE)),
                shape=(h, w, 3),
                dtype=np.uint8,
                photometric="rgb",
                subfiletype=int(number > 0),
                resolution=(40_000, 40_000),
                resolutionunit="CENTIMETER",
                **TILED,
            )


def made_result(folder: Path, size: Size, factors: list[int]) -> Result:
    """Write a slide, and a result of noise with a patch for every 448 pixels."""
    write_slide(folder / "slide.tif", size, factors)
    rng = np.random.default_rng(1)
    values = rng.random((1, size.h // CELL, size.w // CELL), np.float32)
    tiles = [
        ((x, y, 448, 448), (float(rng.random()),), (0.5, float(rng.random())))
        for y in range(0, size.h - 448, 448)
        for x in range(0, size.w - 448, 448)
    ]
    how = Planted("slide.tif", str(folder), size, placement=Placement(-8, -8, CELL, CELL))
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


def whole_view(facts: dict[str, Any]) -> list[str]:
    """Return what a window of 1280 × 800 asks for to show the whole slide: tiles of slide and map."""
    slide, shown = facts["slide"], facts["maps"][0]
    per_pixel = max(slide["w"] / 980, slide["h"] / 800)
    finest = facts["tiles"]["max_level"]
    level = max(facts["tiles"]["min_level"], finest - math.floor(math.log2(per_pixel)))
    scale, step = 2 ** (finest - level), facts["tiles"]["size"]
    coarser = max(0, math.ceil(math.log2(per_pixel / shown["fx"])))
    cells = shown["levels"][coarser]
    return [
        f"slide/{level}/{x}_{y}.jpg"
        for y in range(math.ceil(slide["h"] / scale / step))
        for x in range(math.ceil(slide["w"] / scale / step))
    ] + [
        f"map/0/0/{coarser}/{x}_{y}.f32"
        for y in range(math.ceil(cells[1] / facts["map_tile"]))
        for x in range(math.ceil(cells[0] / facts["map_tile"]))
    ]


def measure(result: Result, size: Size) -> None:
    """Serve a result, and print how long its answers take."""
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
        told = time.perf_counter() - start
        report("tiles of the whole view", timed(ask, whole_view(facts)))
        spent = 1000 * (time.perf_counter() - start)
        print(
            f"first view of {size.w} × {size.h} pixels: {spent:.0f} ms, of which facts {1000 * told:.0f} ms"
        )
        finest, x0, y0 = facts["tiles"]["max_level"], size.w // 2 // TILE, size.h // 2 // TILE
        near = [f"slide/{finest}/{x0 + x}_{y0 + y}.jpg" for y in range(4) for x in range(4)]
        between = [f"slide/{finest - 1}/{x0 // 2 + x}_{y0 // 2 + y}.jpg" for y in range(2) for x in range(2)]
        cold = report("slide tile, finest level, cold", timed(ask, near))
        warm = report("slide tile, finest level, warm", timed(ask, near))
        report("slide tile, between levels, cold", timed(ask, between))
        columns = math.ceil(facts["maps"][0]["levels"][0][0] / facts["map_tile"])
        report("map tile, finest level", timed(ask, [f"map/0/0/0/{x}_0.f32" for x in range(columns)]))
        print(f"warm tiles come {cold / warm:.1f} times as fast as cold ones")
        server.shutdown()


@click.command()
@click.option("--width", default=100_000, help="Pixels of the slide.")
@click.option("--height", default=80_000, help="Pixels of the slide.")
@click.option("--factors", default="1,4,16,64", help="By how much each level of the file is smaller.")
def main(width: int, height: int, factors: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        size = Size(width, height)
        measure(made_result(Path(folder), size, [int(f) for f in factors.split(",")]), size)


if __name__ == "__main__":
    main()
