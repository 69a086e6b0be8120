"""The heatmap as a store on disk: written row by row, readable as OME-Zarr 0.4 (zarr v2) or 0.5 (zarr v3).

Both have axes (c, y, x) with a channel for each target, chunks of (1, 512, 512), ``/`` between chunk numbers,
Blosc inside, and no file for a chunk of zeros.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
import zarr
from numcodecs import Blosc
from zarr.codecs import BloscCodec

from wsi_saliency.errors import OutputError
from wsi_saliency.files import writing
from wsi_saliency.geometry import Size
from wsi_saliency.heatmap.ome_xml import colour_of, ome_xml
from wsi_saliency.heatmap.pyramid import (
    TILE,
    HeatmapInfo,
    Window,
    halve,
    level_sizes,
    sample_step,
    window_of,
)
from wsi_saliency.heatmap.snapshot import DamagedSnapshotError, named
from wsi_saliency.settings import OmeZarrVersion

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from wsi_saliency.heatmap.snapshot import Snapshot, State

OUR_KEY = "wsi-saliency"
"""Our own attributes stand under this key of the store."""

_Level = zarr.Array[Any]


@dataclass(frozen=True)
class Heatmap:
    """A finished heatmap on disk; values are read when asked for.

    Parameters
    ----------
    path
        Folder of the store.
    size
        Cells of the finest level without padding.
    info
        Slide, placement and what was computed.
    windows
        Range of the values, and of those to display, of each channel.
    levels
        Arrays (C, h, w) float32, finest first, each half of the one before; padded with 0 on the right
        and below.
    """

    path: Path
    size: Size
    info: HeatmapInfo
    windows: tuple[Window, ...]
    levels: tuple[_Level, ...]

    @classmethod
    def open(cls, path: Path) -> Heatmap:
        """Open a finished store of either version.

        Raises
        ------
        OutputError
            If there is no finished heatmap at ``path``.
        """
        try:
            group = zarr.open_group(path, mode="r")
            attributes = dict(group.attrs)
            ours: Any = attributes[OUR_KEY]
            ome: Any = attributes.get("ome", attributes)
            levels = tuple(_array(group, dataset["path"]) for dataset in ome["multiscales"][0]["datasets"])
        except (OSError, KeyError) as error:
            raise OutputError(
                f"{path}: holds no finished heatmap; run the slide again with --overwrite"
            ) from error
        info = HeatmapInfo.from_facts(ours["placement"], ours["channels"], ours["details"])
        size = Size(ours["placement"]["width"], ours["placement"]["height"])
        return cls(Path(path), size, info, _read_windows(ome["omero"]), levels)

    @property
    def level_sizes(self) -> list[Size]:
        """Cells of each level, finest first; padded."""
        return [Size(level.shape[2], level.shape[1]) for level in self.levels]

    def read(
        self, level: int, cell_y: slice = slice(None), cell_x: slice = slice(None), *, channel: int = 0
    ) -> NDArray[np.float32]:
        """Read the rows ``cell_y`` and columns ``cell_x`` of a level as (h, w) float32, padding included."""
        return np.asarray(self.levels[level][channel, cell_y, cell_x], np.float32)


class HeatmapWriter:
    """Writes a heatmap from top to bottom, all levels at the same time.

    Rows are collected until they fill a row of chunks; that is written once, never read back, and its half
    goes on to the next level in the same way. Memory: `TILE` rows of the map, the same again for all coarser
    levels together, the few chunks that are being compressed, and a sample of at most about 16 MB for the
    percentiles, all of it for each channel; the map's height does not matter.

    Descriptions are written last, by `finish`: a store without them is unfinished, and no reader opens it as
    an image.
    """

    def __init__(
        self,
        path: Path,
        size: Size,
        info: HeatmapInfo,
        group: zarr.Group,
        levels: list[_Level],
        shown: tuple[float, float] | None,
    ):
        self._shown = shown
        self._path, self._size, self._info, self._group, self._arrays = path, size, info, group, levels
        self._next_y = 0
        self._ranges = [_Range(sample_step(size)) for _ in info.channels]
        coarser = None
        for array in reversed(levels):
            coarser = _LevelWriter(array, coarser)
        assert coarser is not None
        self._finest = coarser

    @classmethod
    def create(
        cls,
        path: Path,
        size: Size,
        info: HeatmapInfo,
        version: OmeZarrVersion = "0.4",
        shown: tuple[float, float] | None = None,
    ) -> HeatmapWriter:
        """Start a store for ``size`` cells at ``path``, which must not exist.

        Viewers shall display the values ``shown``; None: between the 1st and the 99th percentile.

        Raises
        ------
        OutputError
            If ``path`` exists or cannot be written.
        """
        if version not in get_args(OmeZarrVersion):
            raise ValueError(f"OME-Zarr {version!r} is none of {get_args(OmeZarrVersion)}")
        if path.exists():
            raise OutputError(f"{path}: exists already; use --overwrite or choose another folder with -o")
        with writing(path):
            group = zarr.create_group(path, zarr_format=2 if version == "0.4" else 3)
            levels = [
                _create_level(group, k, len(info.channels), cells)
                for k, cells in enumerate(level_sizes(size))
            ]
        return cls(path, size, info, group, levels, shown)

    @classmethod
    def reopen(
        cls,
        path: Path,
        size: Size,
        info: HeatmapInfo,
        version: OmeZarrVersion,
        shown: tuple[float, float] | None,
        saved: Snapshot,
    ) -> HeatmapWriter:
        """Go on with a store that `create` has started with the same arguments, from its `state`.

        Rows that came after the state was taken are written again, over what they have left.

        Raises
        ------
        DamagedSnapshotError
            If the store or the state is another one.
        """
        try:
            group = zarr.open_group(path, mode="r+", zarr_format=2 if version == "0.4" else 3)
            levels = [_array(group, str(k)) for k in range(len(level_sizes(size)))]
        except (OSError, KeyError, ValueError, TypeError) as error:
            raise DamagedSnapshotError(f"{path.name} is no store") from error
        for array, cells in zip(levels, level_sizes(size), strict=True):
            if (array.shape, array.chunks, array.dtype.str) != (
                (len(info.channels), cells.h, cells.w),
                (1, TILE, TILE),
                "<f4",
            ):
                raise DamagedSnapshotError(f"{path.name} is another store")
        writer = cls(path, size, info, group, levels, shown)
        writer._restore(saved)
        return writer

    def state(self) -> State:
        """Return what `reopen` needs: views of the rows that are in no chunk yet, ranges and samples."""
        state: State = {"next_y": np.array(self._next_y)}
        for channel, observed in enumerate(self._ranges):
            state |= named(channel, observed.state())
        return state | {f"band/{k}": level.waiting for k, level in enumerate(self._finest.all())}

    def _restore(self, saved: Snapshot) -> None:
        self._next_y = rows = saved.number("next_y", range(self._size.h + 1))
        for channel, observed in enumerate(self._ranges):
            observed.restore(saved.part(channel), self._size)
        for k, level in enumerate(self._finest.all()):
            rows = level.restore(rows, saved, f"band/{k}")

    def write_rows(self, cell_y: int, rows: NDArray[np.float32]) -> None:
        """Write ``rows``, (C, n, w) float32, whose first is row ``cell_y`` of the map.

        Rows come from the top downwards, each once; rows that are left out are 0.

        Raises
        ------
        OutputError
            If a value is not finite, or the store cannot be written.
        """
        channels, count, width = rows.shape
        fits = (channels, width) == (len(self._ranges), self._size.w)
        if not fits or not self._next_y <= cell_y <= self._size.h - count:
            raise ValueError(
                f"{rows.shape} values from row {cell_y}, after {self._next_y} rows, do not fit "
                f"{len(self._ranges)} channels of {self._size.w} × {self._size.h} cells"
            )
        self._check_finite(cell_y, rows)
        for observed, of_channel in zip(self._ranges, rows, strict=True):
            observed.add(cell_y, of_channel)
        with writing(self._path):
            self._finest.add_zeros(cell_y - self._next_y)
            self._finest.add(rows)
        self._next_y = cell_y + count

    def finish(self) -> Heatmap:
        """Write the remaining rows and the descriptions, and open what has been written.

        Raises
        ------
        OutputError
            If the store cannot be written.
        """
        with writing(self._path):
            self._finest.add_zeros(self._arrays[0].shape[1] - self._next_y)
            self._write_xml()
            self._group.update_attributes(self._attributes())
        return Heatmap.open(self._path)

    def _check_finite(self, cell_y: int, rows: NDArray[np.float32]) -> None:
        finite = np.isfinite(rows).all(axis=(0, 2))
        if not finite.all():
            raise OutputError(
                f"{self._path}: row {cell_y + int(np.argmin(finite))} of the map has values that are not "
                "finite; try --precision fp32"
            )

    def _write_xml(self) -> None:
        """QuPath takes the cell size from here and nowhere else."""
        padded = level_sizes(self._size)[0]
        self._group.require_group("OME")
        xml = ome_xml(self._info, self._size, padded, pixels_in="elsewhere")
        (self._path / "OME" / "METADATA.ome.xml").write_bytes(xml)

    def _attributes(self) -> dict[str, Any]:
        info = self._info
        windows = [observed.window for observed in self._ranges]
        if self._shown is not None:
            windows = [window.showing(*self._shown) for window in windows]
        ours = {
            "placement": info.facts(self._size),
            "channels": list(info.channels),
            "details": dict(info.details),
        }
        multiscale = _multiscale(info, len(self._arrays))
        channels = [_channel(i, *named) for i, named in enumerate(zip(info.channels, windows, strict=True))]
        omero = {"name": info.slide_name, "channels": channels}
        if self._group.metadata.zarr_format == 2:
            return {
                "multiscales": [{"version": "0.4", **multiscale}],
                "omero": {"version": "0.4", **omero},
                OUR_KEY: ours,
            }
        return {"ome": {"version": "0.5", "multiscales": [multiscale], "omero": omero}, OUR_KEY: ours}


class _Range:
    """Notes the range of a channel's values, and a sample of the computed ones."""

    def __init__(self, step: int) -> None:
        self._step = step
        self._lowest = self._highest = 0.0
        self._sample = [np.empty(0, np.float32)]

    def add(self, cell_y: int, rows: NDArray[np.float32]) -> None:
        """Look at rows (n, w), the first of which is row ``cell_y`` of the map."""
        self._lowest = float(np.min(rows, initial=self._lowest))
        self._highest = float(np.max(rows, initial=self._highest))
        sample = rows[-cell_y % self._step :: self._step, :: self._step]
        self._sample.append(sample[sample != 0])

    def state(self) -> State:
        """Return the range and the sample, which are joined in passing."""
        self._sample = [np.concatenate(self._sample)]
        return {"range": np.array([self._lowest, self._highest]), "sample": self._sample[0]}

    def restore(self, saved: Snapshot, size: Size) -> None:
        """Take the range and the sample over from a `state`, of a map of that size."""
        most = -(-size.w // self._step) * -(-size.h // self._step)
        self._lowest, self._highest = map(float, saved.array("range", "<f8", 2))
        self._sample = [saved.array("sample", "<f4", range(most + 1))]
        if not np.isfinite([self._lowest, self._highest]).all() or not np.isfinite(self._sample[0]).all():
            raise DamagedSnapshotError("a range without end")

    @property
    def window(self) -> Window:
        """What is to be displayed."""
        return window_of(np.concatenate(self._sample), self._lowest, self._highest)


class _LevelWriter:
    """Collects the rows of one level into rows of chunks and passes their halves on."""

    def __init__(self, array: _Level, coarser: _LevelWriter | None) -> None:
        self._array, self._coarser = array, coarser
        self._channels, self._h, self._w = array.shape
        self._band = np.zeros((self._channels, min(TILE, self._h), self._w), np.float32)
        self._top = self._filled = 0

    def add(self, rows: NDArray[np.float32]) -> None:
        """Add the next rows (C, n, w); they may be narrower than the level, the rest of it stays 0."""
        while rows.shape[1]:
            taken = min(rows.shape[1], self._band.shape[1] - self._filled)
            self._band[:, self._filled : self._filled + taken, : rows.shape[2]] = rows[:, :taken]
            self._filled += taken
            rows = rows[:, taken:]
            if self._filled == self._band.shape[1]:
                self._flush()

    def add_zeros(self, count: int) -> None:
        """Add ``count`` rows of 0 without holding them."""
        self.add(np.broadcast_to(np.float32(0), (self._channels, count, self._w)))

    def all(self) -> Iterator[_LevelWriter]:
        """Yield this level and all coarser ones."""
        yield self
        if self._coarser is not None:
            yield from self._coarser.all()

    @property
    def waiting(self) -> NDArray[np.float32]:
        """The rows (C, n, w) that are in no chunk yet."""
        return self._band[:, : self._filled]

    def restore(self, rows: int, saved: Snapshot, name: str) -> int:
        """Go on after ``rows`` rows, of which the waiting ones are saved; return the coarser level's rows."""
        self._top = rows if rows == self._h else rows // TILE * TILE
        self._filled = rows - self._top
        self._band = np.zeros((self._channels, min(TILE, self._h - self._top), self._w), np.float32)
        self.waiting[:] = saved.array(name, "<f4", self._channels, self._filled, self._w)
        return self._top // 2

    def _flush(self) -> None:
        self._array[:, self._top : self._top + self._filled] = self._band
        if self._coarser is not None:
            self._coarser.add(halve(self._band))
        self._top += self._filled
        self._filled = 0
        self._band = self._band[:, : self._h - self._top]


def _create_level(group: zarr.Group, level: int, channels: int, size: Size) -> _Level:
    v2 = group.metadata.zarr_format == 2
    # JZarr, with which QuPath reads, refuses zarr-python's own default compressor for v2.
    compressor = (
        Blosc(cname="zstd", clevel=3, shuffle=Blosc.SHUFFLE)
        if v2
        else BloscCodec(typesize=4, cname="zstd", clevel=3, shuffle="shuffle")
    )
    return group.create_array(
        str(level),
        shape=(channels, size.h, size.w),
        chunks=(1, TILE, TILE),
        dtype="<f4" if v2 else "float32",
        compressors=compressor,
        fill_value=0.0,
        chunk_key_encoding={"name": "v2" if v2 else "default", "separator": "/"},
        dimension_names=None if v2 else ("c", "y", "x"),
    )


def _array(group: zarr.Group, path: str) -> _Level:
    array = group[path]
    if not isinstance(array, zarr.Array):
        raise KeyError(path)
    return array


def _multiscale(info: HeatmapInfo, levels: int) -> dict[str, Any]:
    axes = [{"name": "c", "type": "channel"}] + [
        {"name": name, "type": "space", "unit": "micrometer"} for name in "yx"
    ]
    datasets = [
        {"path": str(level), "coordinateTransformations": _transforms(info, level)} for level in range(levels)
    ]
    return {"name": info.slide_name, "axes": axes, "datasets": datasets, "type": "mean"}


def _transforms(info: HeatmapInfo, level: int) -> list[dict[str, Any]]:
    cell = info.cell_mpp(level)
    x, y = info.first_centre_um(level)
    return [
        {"type": "scale", "scale": [1.0, cell.y, cell.x]},
        {"type": "translation", "translation": [0.0, y, x]},
    ]


def _channel(number: int, label: str, window: Window) -> dict[str, Any]:
    return {
        "label": label,
        "color": colour_of(number),
        "active": number == 0,
        "window": {
            "min": window.lowest,
            "max": window.highest,
            "start": window.start,
            "end": window.end,
        },
    }


def _read_windows(omero: Any) -> tuple[Window, ...]:
    windows = [channel["window"] for channel in omero["channels"]]
    return tuple(Window(w["min"], w["max"], w["start"], w["end"]) for w in windows)
