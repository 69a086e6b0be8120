"""Lay labelled patches out as a slide, with the true outlines of each class beside it.

    python sample_data/make_mosaic.py patches -o mosaic.svs --positive tumour

``patches`` holds a folder of pictures for each class, all of one size. Each patch fills a cell of twice its
side, together with its three mirror images, so that nothing breaks off inside a cell. Cells of one class lie
together in regions. Where two patches meet there is a seam: fading one into the other would draw tissue that
neither has, and a classifier hardly sees the seam. All positions are level-0 pixels, arrays (row, column).
"""

from __future__ import annotations

import argparse
import math
import sys
from collections import defaultdict
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image
from scipy import ndimage

sys.path.insert(0, str(Path(__file__).parent))  # the scripts are no package

from make_sample import annotation, write_geojson, write_svs

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    Labels = NDArray[np.intp]
    Mask = NDArray[np.bool_]
    Ring = NDArray[np.int64]

Corner = tuple[int, int]  # x, y

GLASS = (243, 242, 244)
MARGIN = 200  # pixels; no multiple of a usual stride, so that no grid of patches falls on the seams
POSITIVE_SHARE = 1 / 3
SUFFIXES = (".jpeg", ".jpg", ".png", ".tif", ".tiff")
COLORS = ((200, 0, 0), (0, 150, 60), (40, 90, 210), (220, 150, 0), (140, 60, 180), (0, 160, 170))
_AROUND = (  # (rows, columns) to the neighbour of a cell; corners (x, y) of the side between, clockwise
    ((-1, 0), (0, 0), (1, 0)),
    ((0, 1), (1, 0), (1, 1)),
    ((1, 0), (1, 1), (0, 1)),
    ((0, -1), (0, 1), (0, 0)),
)
_HILL = 1.4  # cells; deviation of the Gaussian that makes regions several cells wide


class MosaicError(ValueError):
    """Patches that no slide can be made of."""


@dataclass(frozen=True)
class Mosaic:
    """A slide of patches with everything that is known about it.

    Parameters
    ----------
    image
        (H, W, 3) uint8 RGB.
    classes
        Names of the classes, the positive one first.
    labels
        (rows, columns) class of each cell, an index of ``classes``.
    side
        Side of a cell, pixels. Cell (row, column) covers x ``MARGIN + column * side`` on, y likewise.
    """

    image: NDArray[np.uint8]
    classes: tuple[str, ...]
    labels: Labels
    side: int

    def annotations(self) -> list[dict[str, object]]:
        """Return the regions of each class as QuPath annotations, level-0 pixels."""
        features = []
        for index, name in enumerate(self.classes):
            for number, rings in enumerate(outlines(self.labels == index)):
                placed = [MARGIN + self.side * ring for ring in rings]
                color = COLORS[index % len(COLORS)]
                features.append(
                    annotation(f"mosaic/{name}/{number}", f"{name} {number + 1}", placed, name, color)
                )
        return features


def make_mosaic(
    files: Mapping[str, Sequence[Path]],
    columns: int,
    rows: int,
    seed: int = 0,
    positive: str | None = None,
) -> Mosaic:
    """Lay patches out in regions of one class.

    Parameters
    ----------
    files
        The pictures of each class, as `patch_files` finds them. None is taken again before all are taken.
    columns, rows
        Cells of the mosaic.
    seed
        Everything follows from it.
    positive
        The class that gets a third of the cells, the others sharing the rest by how many pictures they have;
        without one all classes get the same.

    Raises
    ------
    MosaicError
        If there is no such class, or a picture cannot be read or has another size than the others.
    """
    if positive is not None and positive not in files:
        raise MosaicError(f"there is no class {positive!r}; --positive takes one of {', '.join(files)}")
    files = {name: files[name] for name in sorted(files, key=lambda name: name != positive)}
    rng = np.random.default_rng(seed)
    labels = regions(
        rng, columns, rows, shares({name: len(paths) for name, paths in files.items()}, positive)
    )
    drawn = [cycle([paths[i] for i in rng.permutation(len(paths))]) for paths in files.values()]
    patch_side = len(_read(next(iter(files.values()))[0]))
    side = 2 * patch_side
    image = np.empty((2 * MARGIN + rows * side, 2 * MARGIN + columns * side, 3), np.uint8)
    image[:] = GLASS
    for (row, column), label in np.ndenumerate(labels):
        y, x = MARGIN + row * side, MARGIN + column * side
        image[y : y + side, x : x + side] = mirrored(_patch(next(drawn[label]), patch_side))
    return Mosaic(image, tuple(files), labels, side)


def patch_files(folder: Path) -> dict[str, list[Path]]:
    """Find the pictures in the sub-folders of a folder, by class, both in alphabetical order.

    Raises
    ------
    MosaicError
        If there are fewer than two such sub-folders with pictures.
    """
    classes = sorted(path for path in folder.glob("*") if path.is_dir())
    found = {
        path.name: sorted(file for file in path.iterdir() if file.suffix.lower() in SUFFIXES)
        for path in classes
    }
    found = {name: files for name, files in found.items() if files}
    if len(found) < 2:
        raise MosaicError(
            f"{folder}: {len(found)} sub-folders with pictures ({', '.join(SUFFIXES)}); PATCHES needs one "
            "for each class, and at least two"
        )
    return found


def mirrored(patch: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Lay a patch (P, P, 3) beside its mirror images, so that all edges continue: (2P, 2P, 3)."""
    wide = np.concatenate([patch, patch[:, ::-1]], axis=1)
    return np.concatenate([wide, wide[::-1]])


def _patch(path: Path, side: int) -> NDArray[np.uint8]:
    pixels = _read(path)
    if pixels.shape[:2] != (side, side):
        h, w = pixels.shape[:2]
        raise MosaicError(
            f"{path}: {w} × {h} px; all patches have to be as large and square ({side} × {side} px)"
        )
    return pixels


def _read(path: Path) -> NDArray[np.uint8]:
    try:
        with Image.open(path) as picture:
            return np.asarray(picture.convert("RGB"))
    except OSError as error:
        raise MosaicError(f"{path}: cannot be read as a picture") from error


# --------------------------------------------------------------------------------------------- layout


def shares(pictures: Mapping[str, int], positive: str | None) -> list[float]:
    """Share of the cells that each class gets, in the order of ``pictures``, the number that it has."""
    if positive is None:
        return [1 / len(pictures)] * len(pictures)
    others = sum(pictures.values()) - pictures[positive]
    rest = (1 - POSITIVE_SHARE) / others
    return [POSITIVE_SHARE if name == positive else rest * n for name, n in pictures.items()]


def regions(rng: np.random.Generator, columns: int, rows: int, wanted: Sequence[float]) -> Labels:
    """Give each cell a class: each takes, where there is room, the hills of a smooth noise of its own.

    ``wanted`` are the classes' shares of the cells; they are met to the cell. Returns (rows, columns).
    """
    labels = np.full(rows * columns, -1)
    ends = np.rint(np.cumsum(wanted) * labels.size).astype(int)
    for label, count in enumerate(np.diff(ends, prepend=0)):
        hills = ndimage.gaussian_filter(rng.standard_normal((rows, columns)), _HILL).ravel()
        hills[labels >= 0] = -math.inf
        labels[np.argsort(-hills, kind="stable")[:count]] = label
    return labels.reshape(rows, columns)


def outlines(inside: Mask) -> Iterator[list[Ring]]:
    """Yield the outline of each region and those of its holes, (V, 2) x and y, not closed, in cells.

    A region is what hangs together by the sides of cells of ``inside`` (rows, columns). Where it touches
    itself at a corner, two of its rings touch there: no ring touches itself.
    """
    numbered, count = ndimage.label(inside)
    for number in range(1, count + 1):
        yield sorted(_rings(numbered == number), key=_signed_area, reverse=True)


def _rings(inside: Mask) -> Iterator[Ring]:
    """Follow the sides of cells between inside and outside, the inside on the right."""
    onward = _sides(inside)
    while onward:
        corner = start = next(iter(onward))
        ring: list[Corner] = []
        step = 0, 0
        while not ring or corner != start:
            ends = onward[corner]
            left = corner[0] + step[1], corner[1] - step[0]  # where rings touch: away from the inside
            end = ends.pop(ends.index(left) if left in ends else 0)
            if not ends:
                del onward[corner]
            ring.append(corner)
            corner, step = end, (end[0] - corner[0], end[1] - corner[1])
        yield _turns(np.array(ring))


def _turns(ring: Ring) -> Ring:
    """Keep the vertices at which a ring turns."""
    ahead = np.roll(ring, -1, axis=0) - ring
    turns: Ring = ring[(ahead != np.roll(ahead, 1, axis=0)).any(axis=1)]
    return turns


def _sides(inside: Mask) -> dict[Corner, list[Corner]]:
    """From each corner the ends of the sides that begin there."""
    padded, sides = np.pad(inside, 1), defaultdict[Corner, list[Corner]](list)
    for (over, along), start, end in _AROUND:
        beside = np.roll(padded, (-over, -along), (0, 1))[1:-1, 1:-1]
        for y, x in np.argwhere(inside & ~beside).tolist():
            sides[x + start[0], y + start[1]].append((x + end[0], y + end[1]))
    return sides


def _signed_area(ring: Ring) -> float:
    """Twice the area; positive for outlines, which go round to the right, negative for holes."""
    x, y = ring.T
    return float(x @ np.roll(y, -1) - y @ np.roll(x, -1))


# ---------------------------------------------------------------------------------------------- files


def write_mosaic(path: Path, mosaic: Mosaic, mpp: float, quality: int) -> None:
    """Write the slide as an Aperio pyramid, and the truth as GeoJSON beside it.

    ``mpp``: µm per pixel of the patches. ``quality``: of the JPEG tiles.
    """
    write_svs(path, mosaic.image, quality, mpp, "laid out by make_mosaic.py")
    write_geojson(path.with_suffix(".geojson"), mosaic.annotations())


def main() -> None:
    """Write the slide and its truth."""
    options = _parser().parse_args()
    try:
        files = patch_files(options.patches)
        rows = options.rows or options.columns
        mosaic = make_mosaic(files, options.columns, rows, options.seed, options.positive)
        write_mosaic(options.out, mosaic, options.mpp, options.quality)
    except (MosaicError, OSError) as error:
        sys.exit(f"Error: {error}")
    h, w = mosaic.image.shape[:2]
    print(f"{options.out}: {w} × {h} px at {options.mpp:g} µm/px")
    for label, name in enumerate(mosaic.classes):
        count, there = np.count_nonzero(mosaic.labels == label), len(files[name])
        print(f"  {name}: {count} cells, {min(count, there)} of {there} patches")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument(
        "patches", type=Path, metavar="PATCHES", help="folder with a folder of pictures a class"
    )
    parser.add_argument("-o", "--out", type=Path, default=Path("mosaic.svs"), help="slide to write")
    parser.add_argument("--mpp", type=_positive(float), default=0.5, help="µm per pixel of the patches")
    parser.add_argument("--columns", type=_positive(int), default=8, help="cells beside each other")
    parser.add_argument("--rows", type=_positive(int), help="cells below each other; as many if left out")
    parser.add_argument("--seed", type=int, default=0, help="another seed lays out another slide")
    parser.add_argument("--positive", metavar="CLASS", help="class that gets a third of the cells")
    parser.add_argument("--quality", type=int, default=95, help="JPEG quality of the slide")
    return parser


def _positive(kind: Callable[[str], float]) -> Callable[[str], float]:
    """Return a type of arguments: numbers above 0, as `argparse` wants it."""

    def number(text: str) -> float:
        value = kind(text)
        if not 0 < value < math.inf:
            raise ValueError
        return value

    number.__name__ = f"{kind.__name__} above 0"
    return number


if __name__ == "__main__":
    main()
