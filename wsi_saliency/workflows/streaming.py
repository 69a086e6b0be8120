"""The way of the patches: read, explained, stitched into the maps, noted in the table of patches."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np

from wsi_saliency.heatmap.ome_zarr import HeatmapWriter
from wsi_saliency.heatmap.overview import Predictions
from wsi_saliency.heatmap.pyramid import HeatmapInfo
from wsi_saliency.heatmap.result import (
    BOX_COLUMNS,
    QUALITY_COLUMNS,
    TILES,
    MapFiles,
    columns_of,
    probability_column,
)
from wsi_saliency.heatmap.snapshot import named
from wsi_saliency.heatmap.stitching import Stitcher
from wsi_saliency.heatmap.tile_table import tile_table
from wsi_saliency.interruption import reraise_interruption
from wsi_saliency.models.classifier import probabilities
from wsi_saliency.slides.blocks import PatchReader
from wsi_saliency.slides.quality import sharpness
from wsi_saliency.workflows.progress import silence

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray
    from torch import Tensor

    from wsi_saliency.geometry import Tile
    from wsi_saliency.heatmap.ome_zarr import Heatmap
    from wsi_saliency.heatmap.result import Result
    from wsi_saliency.heatmap.snapshot import State
    from wsi_saliency.heatmap.tile_table import TileTable
    from wsi_saliency.mapspec import MapSpec
    from wsi_saliency.saliency.engine import Explanation
    from wsi_saliency.settings import RunSettings
    from wsi_saliency.workflows.journal import Journal, Saved
    from wsi_saliency.workflows.plan import Plan
    from wsi_saliency.workflows.progress import Progress

    WriteRows = Callable[[int, NDArray[np.float32]], None]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class MapSink:
    """Where one map's values go: stitched, and from there into its store."""

    stitcher: Stitcher
    store: HeatmapWriter

    @classmethod
    def create(
        cls, path: Path, plan: Plan, spec: MapSpec, settings: RunSettings, saved: Saved | None = None
    ) -> MapSink:
        """Start the store of a map at ``path``, or go on where an earlier run has ended.

        Raises
        ------
        DamagedSnapshotError
            If what the earlier run has left is damaged.
        """
        layer, channels = plan.explainer.geometry(spec), len(plan.explainer.targets)
        about = path, plan.cells(spec), heatmap_info(plan, spec), settings.ome_zarr, settings.range
        arrays = saved and saved.arrays.part(spec.name)
        store = HeatmapWriter.reopen(*about, arrays.part("store")) if arrays else HeatmapWriter.create(*about)
        stitcher = Stitcher(
            plan.grid,
            plan.tiles,
            layer.reduction,
            layer.cell_w,
            layer.cell_h,
            channels,
            _near_tissue(plan, spec, store.write_rows),
        )
        if saved and arrays:
            stitcher.restore(arrays.part("stitcher"), plan.tiles[: saved.done])
        return cls(stitcher, store)

    def add(self, tiles: Sequence[Tile], maps: Tensor) -> None:
        """Add the maps (n, T, h, w) of some patches."""
        for tile, cell_maps in zip(tiles, maps.numpy(), strict=True):
            self.stitcher.add(tile, cell_maps)

    def state(self) -> State:
        """Return what `create` needs to go on."""
        return named("stitcher", self.stitcher.state()) | named("store", self.store.state())

    def finish(self) -> Heatmap:
        """Write what is left, and open the finished map."""
        self.stitcher.finish()
        return self.store.finish()


def heatmap_info(plan: Plan, spec: MapSpec) -> HeatmapInfo:
    """Collect what a map's files say about themselves."""
    explainer, classifier = plan.explainer, plan.explainer.classifier
    quantity = explainer.network.quantity(spec.attribution)
    magnitude = explainer.network.is_magnitude(spec.attribution)
    return HeatmapInfo(
        slide_name=plan.slide.name,
        slide_size=plan.slide.size,
        slide_mpp=plan.slide.mpp,
        placement=plan.placement(spec),
        channels=tuple(
            " · ".join([quantity, spec.method, spec.layer, target]) for target in explainer.target_names
        ),
        details={
            "model": classifier.uri,
            "model_sha256": classifier.sha256,
            "method": spec.method,
            "attribution": spec.attribution,
            "values": "magnitude" if magnitude else "signed",
            "layer": spec.layer,
            "target": ", ".join(explainer.target_names),
        },
    )


@dataclass
class _Growth:
    """All that grows while patches come."""

    sinks: dict[MapSpec, MapSink]
    rows: _Rows
    table: TileTable
    done: int
    whole: bool = True

    def add(self, tiles: Sequence[Tile], patches: NDArray[np.uint8], explanation: Explanation) -> None:
        """Add some patches."""
        self.whole = False
        for spec, sink in self.sinks.items():
            sink.add(tiles, explanation.maps[spec])
        for row in self.rows.of(tiles, patches, explanation):
            self.table.write(row)
        self.done += len(tiles)
        self.whole = True

    def facts(self) -> dict[str, Any]:
        said = [(found.positive, found.highest) for found in self.rows.predictions]
        return {"table": self.table.size(), "said": said}

    def state(self) -> State:
        state: State = {}
        for spec, sink in self.sinks.items():
            state |= named(spec.name, sink.state())
        return state


def explain_tiles(
    plan: Plan,
    settings: RunSettings,
    work: Path,
    journal: Journal,
    *,
    before: Result | None = None,
    progress: Progress = silence,
) -> tuple[dict[MapSpec, Heatmap], list[Predictions]]:
    """Stream the patches through the classifier, their maps to the stores, their figures to the table.

    Parameters
    ----------
    plan, settings
        What is done.
    work
        The folder that the result grows in.
    journal
        Told how far it is, and says how far an earlier run was; its clock, how long each station takes.
    before
        The result that the maps are added to: its maps keep their columns of the table.
    progress
        Shows how many patches are done.

    Returns
    -------
    The finished maps, and what the classifier says of the patches, for each target.

    Raises
    ------
    DamagedSnapshotError
        If what an earlier run has left is damaged.
    """
    saved, clock = journal.saved, journal.clock
    earlier = [found.spec for found in before.maps] if before else []
    files = MapFiles.of([*earlier, *plan.maps])
    sinks = {
        spec: MapSink.create(work / files[spec].ome_zarr, plan, spec, settings, saved) for spec in plan.maps
    }
    rows = _Rows(plan, before, saved)
    with (
        tile_table(work / TILES, rows.columns, saved.table if saved else None) as table,
        progress(plan.slide.name, len(plan.tiles)) as advance,
    ):
        growth = _Growth(sinks, rows, table, journal.begin())
        advance(growth.done)
        reader = PatchReader(plan.slide, plan.grid, plan.tiles[growth.done :], settings.workers)
        with journal.noting(growth, plan) as note:
            for tiles, patches in clock.iterate("read", reader.batches(journal.step)):
                with clock.station("explain"):
                    explanation = plan.explainer(patches, plan.maps)
                with clock.station("stitch"):
                    growth.add(tiles, patches, explanation)
                note()
                advance(len(tiles))
                reraise_interruption()  # of a signal whose exception was lost in a library's callback
    with clock.station("zarr"):
        return {spec: sink.finish() for spec, sink in sinks.items()}, rows.predictions


def _near_tissue(plan: Plan, spec: MapSpec, write_rows: WriteRows) -> WriteRows:
    """Put 0 where there is no tissue near, unless every patch of the slide was wanted."""
    if len(plan.tiles) == len(plan.grid):
        return write_rows
    return lambda cell_y, rows: write_rows(
        cell_y, np.where(plan.near_tissue(spec, cell_y, rows.shape[1]), rows, 0)
    )


class _Rows:
    """Makes the rows of the table of patches, and counts what the classifier says of the targets."""

    def __init__(self, plan: Plan, before: Result | None, saved: Saved | None) -> None:
        done = saved.done if saved else 0
        said = saved.said if saved else [(0, None) for _ in plan.explainer.targets]
        self._plan = plan
        self._shares = iter(plan.tissue_shares[done:])
        self.predictions = [  # what was said of all patches so far, for each target
            Predictions(name, done, *counts)
            for name, counts in zip(plan.explainer.target_names, said, strict=True)
        ]
        earlier = [found.spec for found in before.maps] if before else []
        names = columns_of([*earlier, *plan.maps], plan.explainer.target_names)
        self._columns = [name for pairs in names.values() for pair in pairs for name in pair]
        self._earlier = islice(_earlier_figures(before), done, None) if before else None

    @property
    def columns(self) -> list[str]:
        """Headings of the table."""
        classes = self._plan.explainer.classifier.class_names
        quality = QUALITY_COLUMNS if self._plan.seen.artefacts else ()
        return [*BOX_COLUMNS, *quality, *map(probability_column, classes), *self._columns]

    def of(
        self, tiles: Sequence[Tile], patches: NDArray[np.uint8], explanation: Explanation
    ) -> Iterator[list[object]]:
        """Yield the rows of some patches."""
        explainer = self._plan.explainer
        scores = probabilities(explanation.logits, explainer.classifier.output).tolist()
        figures = _figures(explanation.maps, self._plan.maps)
        qualities = _qualities(self._plan, tiles, patches)
        for tile, score, numbers, quality in zip(tiles, scores, figures, qualities, strict=True):
            said = zip(self.predictions, explainer.targets, strict=True)
            self.predictions = [counted.adding(score[target]) for counted, target in said]
            box, tissue = self._plan.grid.level0_box(tile), f"{next(self._shares):.4f}"
            earlier = next(self._earlier) if self._earlier else ()
            made = [f"{value:.6g}" for value in numbers]
            yield [*box, tissue, *quality, *(f"{value:.6g}" for value in score), *earlier, *made]


def _qualities(plan: Plan, tiles: Sequence[Tile], patches: NDArray[np.uint8]) -> list[list[str]]:
    """Return what the table says of pen, folds and blur of each patch; nothing if nobody asked."""
    found = plan.seen.artefacts
    if found is None:
        return [[] for _ in tiles]
    boxes = np.array([plan.grid.level0_box(tile) for tile in tiles]).T
    columns = found.pen.fractions(*boxes), found.fold.fractions(*boxes), sharpness(patches)
    return [[f"{pen:.4f}", f"{fold:.4f}", f"{sharp:.6g}"] for pen, fold, sharp in zip(*columns, strict=True)]


def _figures(maps: Mapping[MapSpec, Tensor], specs: Sequence[MapSpec]) -> list[list[float]]:
    """Mean and largest value of each patch's maps, (n, 2 · T · maps), in the order of the columns."""
    columns: list[list[float]] = []
    for spec in specs:
        flat = maps[spec].flatten(2)
        for target in range(flat.shape[1]):
            columns += [flat[:, target].mean(1).tolist(), flat[:, target].amax(1).tolist()]
    return [list(row) for row in zip(*columns, strict=True)]


def _earlier_figures(before: Result) -> Iterator[list[str]]:
    """Yield what the table says of the maps that are there already, row by row."""
    names = columns_of([found.spec for found in before.maps], before.targets)
    columns = [name for pairs in names.values() for pair in pairs for name in pair]
    for row in before.tiles():
        yield [row[name] for name in columns]
