"""Blocks: the slide is read in threads ahead of the classifier, each pixel once, and patches are cut from it.

Patches overlap, so reading them one by one would decode each pixel several times. Instead the canvas is
divided into square blocks; every block under a patch is read once, kept while a later patch needs it, and
dropped after the last. The order of reading and dropping is planned before anything is read.
"""

from __future__ import annotations

import time
from array import array
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple, overload

import numpy as np

from wsi_saliency.geometry import Size

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from numpy.typing import NDArray

    from wsi_saliency.geometry import Tile, TileGrid
    from wsi_saliency.slides.slide import Slide

BLOCK = 256
"""Side of a block in canvas pixels: two rows of blocks, over the width of the slide, are held at a time."""

_NEVER = 2**31 - 1
_PIECE = 2**14  # numbers
_AHEAD = 8  # blocks for each thread that are read before a patch needs them
MEMORY = 512 * 2**20  # bytes of decoded blocks


class Block(NamedTuple):
    """A square of the canvas, counted in blocks."""

    column: int
    row: int


class BlockChange(NamedTuple):
    """What happens before one patch is cut."""

    drop: tuple[Block, ...]
    read: tuple[Block, ...]


def blocks_under(tile: Tile, patch: int) -> list[Block]:
    """Blocks that a patch touches."""
    columns = range(tile.canvas_x // BLOCK, (tile.canvas_x + patch - 1) // BLOCK + 1)
    rows = range(tile.canvas_y // BLOCK, (tile.canvas_y + patch - 1) // BLOCK + 1)
    return [Block(column, row) for row in rows for column in columns]


def block_changes(needs: Sequence[Sequence[Block]], capacity: int) -> Iterator[BlockChange]:
    """Plan which blocks are read and dropped before each patch, holding at most ``capacity`` of them.

    A block is dropped when no later patch needs it. Only where that is not enough, the one that is needed
    latest is dropped and read again (Belady's rule). A patch's own blocks are always held, so ``capacity``
    is exceeded where it is smaller than what one patch needs.
    """
    next_uses = _next_uses(needs)
    held: dict[Block, int] = {}  # and the patch that needs it next
    before: Sequence[Block] = ()
    for blocks in needs:
        drop = [block for block in before if held[block] == _NEVER]
        for block in drop:
            del held[block]
        read = [block for block in blocks if block not in held]
        excess = len(held) + len(read) - capacity
        if excess > 0:
            spare = sorted(held.keys() - set(blocks), key=lambda block: (-held[block], block))[:excess]
            drop += spare
            for block in spare:
                del held[block]
        held.update(zip(blocks, next_uses, strict=False))  # those of later patches remain
        before = blocks
        yield BlockChange(tuple(drop), tuple(read))


def _next_uses(needs: Sequence[Sequence[Block]]) -> Iterator[int]:
    """For each block of each patch, in order, yield the next patch that needs it.

    It is found from the last patch to the first, four bytes a block, in pieces that go as they are used: one
    array would be twice as large for a while, each time that it grows.
    """
    pieces, later = [array("i")], dict[Block, int]()
    for i in range(len(needs) - 1, -1, -1):
        for block in reversed(needs[i]):
            pieces[-1].append(later.get(block, _NEVER))
            later[block] = i
        if len(pieces[-1]) > _PIECE:
            pieces.append(array("i"))
    del later
    while pieces:
        yield from reversed(pieces.pop())


@dataclass(frozen=True)
class _Needs(Sequence[Sequence[Block]]):
    """The blocks under each patch, found out when they are asked for."""

    tiles: Sequence[Tile]
    patch: int

    def __len__(self) -> int:
        return len(self.tiles)

    @overload
    def __getitem__(self, index: int) -> list[Block]: ...
    @overload
    def __getitem__(self, index: slice) -> _Needs: ...
    def __getitem__(self, index: int | slice) -> list[Block] | _Needs:
        if isinstance(index, slice):
            return _Needs(self.tiles[index], self.patch)
        return blocks_under(self.tiles[index], self.patch)


@dataclass
class PatchReader:
    """Reads the patches of a slide, in the order of ``tiles``.

    At most ``memory`` bytes of decoded blocks are held, plus eight per thread that are read ahead, whatever
    the slide's size. With the default, slides up to 340 000 canvas pixels wide have every block read once;
    on wider ones, some blocks are read twice.

    Parameters
    ----------
    slide
        Where pixels come from.
    grid, tiles
        The grid, and the tiles of it that are wanted.
    workers
        Reading threads.
    memory
        Bytes of decoded blocks to hold.
    """

    slide: Slide
    grid: TileGrid
    tiles: Sequence[Tile]
    workers: int = 4
    memory: int = MEMORY
    blocks_read: int = field(default=0, init=False)
    seconds_waited: float = field(default=0.0, init=False)

    def batches(self, n: int) -> Iterator[tuple[Sequence[Tile], NDArray[np.uint8]]]:
        """Yield up to ``n`` tiles at a time with their patches (n, P, P, 3), RGB.

        Raises
        ------
        SlideError
            If a region cannot be read.
        """
        side, held = self.grid.patch, self._held()
        for start in range(0, len(self.tiles), n):
            tiles = self.tiles[start : start + n]
            patches = np.empty((len(tiles), side, side, 3), np.uint8)
            for patch, (tile, blocks) in zip(patches, held, strict=False):
                self._cut(tile, blocks, patch)
            yield tiles, patches

    def read_all(self) -> NDArray[np.uint8]:
        """Read the patches of a few tiles at once, (N, P, P, 3)."""
        side = self.grid.patch
        return np.array([*self], np.uint8).reshape(-1, side, side, 3)

    def __iter__(self) -> Iterator[NDArray[np.uint8]]:
        side = self.grid.patch
        for tile, blocks in self._held():
            yield self._cut(tile, blocks, np.empty((side, side, 3), np.uint8))

    def _held(self) -> Iterator[tuple[Tile, dict[Block, NDArray[np.uint8]]]]:
        """Yield each tile with the blocks that are held meanwhile, its own among them."""
        steps = block_changes(_Needs(self.tiles, self.grid.patch), self.memory // (BLOCK * BLOCK * 3))
        held: dict[Block, NDArray[np.uint8]] = {}
        with ThreadPoolExecutor(self.workers, thread_name_prefix="slide") as threads:
            try:
                for tile, (drop, reads) in zip(self.tiles, self._ahead(steps, threads), strict=True):
                    for block in drop:
                        del held[block]
                    for block, pixels in reads.items():
                        held[block] = self._wait(pixels)
                    yield tile, held
            finally:
                threads.shutdown(wait=True, cancel_futures=True)

    def _ahead(
        self, steps: Iterable[BlockChange], threads: ThreadPoolExecutor
    ) -> Iterator[tuple[tuple[Block, ...], dict[Block, Future[NDArray[np.uint8]]]]]:
        """Start reading blocks before their step has come, some for each thread."""
        queue: deque[tuple[tuple[Block, ...], dict[Block, Future[NDArray[np.uint8]]]]] = deque()
        reading = 0
        for step in steps:
            queue.append((step.drop, {block: threads.submit(self._read, block) for block in step.read}))
            reading += len(step.read)
            while reading > _AHEAD * self.workers:
                reading -= len(queue[0][1])
                yield queue.popleft()
        yield from queue

    def _read(self, block: Block) -> NDArray[np.uint8]:
        region = self.grid.canvas.region(block.column * BLOCK, block.row * BLOCK, BLOCK, BLOCK)
        return self.slide.read(region, Size(BLOCK, BLOCK))

    def _wait(self, pixels: Future[NDArray[np.uint8]]) -> NDArray[np.uint8]:
        start = time.perf_counter()
        result = pixels.result()
        self.seconds_waited += time.perf_counter() - start
        self.blocks_read += 1
        return result

    def _cut(
        self, tile: Tile, held: dict[Block, NDArray[np.uint8]], patch: NDArray[np.uint8]
    ) -> NDArray[np.uint8]:
        """Cut a patch (P, P, 3) from the blocks under it."""
        side = self.grid.patch
        for block in blocks_under(tile, side):
            x, y = block.column * BLOCK - tile.canvas_x, block.row * BLOCK - tile.canvas_y
            to_x, to_y = slice(max(x, 0), min(x + BLOCK, side)), slice(max(y, 0), min(y + BLOCK, side))
            from_x, from_y = slice(to_x.start - x, to_x.stop - x), slice(to_y.start - y, to_y.stop - y)
            patch[to_y, to_x] = held[block][from_y, from_x]
        return patch
