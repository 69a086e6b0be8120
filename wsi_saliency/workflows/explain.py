"""One slide end to end: cut into patches, each explained at a hidden layer, laid back over the slide."""

from __future__ import annotations

import csv
import json
import logging
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from tqdm import tqdm

from wsi_saliency.errors import OutputError
from wsi_saliency.files import check_free, growing, locked, writing
from wsi_saliency.geometry import Region, Tile
from wsi_saliency.heatmap.ome_tiff import write_ome_tiff
from wsi_saliency.heatmap.ome_zarr import HeatmapWriter
from wsi_saliency.heatmap.overview import Predictions, thumbnail_size, write_overview
from wsi_saliency.heatmap.pyramid import HeatmapInfo
from wsi_saliency.heatmap.stitching import Stitcher
from wsi_saliency.messages import printable
from wsi_saliency.models.classifier import probabilities
from wsi_saliency.models.loading import load_classifier
from wsi_saliency.saliency.engine import Explainer, Explanation
from wsi_saliency.saliency.reach import Reach
from wsi_saliency.settings import RunSettings
from wsi_saliency.slides.blocks import PatchReader
from wsi_saliency.slides.opening import open_slide
from wsi_saliency.workflows.plan import Plan, plan_slide, with_drift
from wsi_saliency.workflows.record import (
    OVERVIEW,
    RUN_JSON,
    TIFF,
    TILES,
    ZARR,
    Stopwatch,
    differences,
    read_record,
    run_record,
    weight_hashes,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

    from wsi_saliency.heatmap.ome_zarr import Heatmap
    from wsi_saliency.slides.slide import Slide

    _WriteRow = Callable[[Sequence[object]], None]
    _WriteRows = Callable[[int, NDArray[np.float32]], None]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Result:
    """What a run left behind: the folder, its ``run.json``, and whether it was there already.

    ``differences`` says in what a kept result differs from what was asked for.
    """

    folder: Path
    record: dict[str, Any]
    kept: bool = False
    differences: tuple[str, ...] = ()


def load_explainer(settings: RunSettings) -> Explainer:
    """Load the classifier that the settings name, and find the layer and the target in it.

    Raises
    ------
    ModelError, SettingsError
        If the classifier, the layer, the target or the device cannot be had.
    """
    classifier = load_classifier(
        settings.model, settings.weights, mpp=settings.model_mpp, patch=settings.patch
    )
    for note in classifier.notes:
        log.warning("%s: %s", settings.model, note)
    explainer = Explainer.of(
        classifier,
        layer=settings.layer,
        target=settings.target,
        method=settings.method,
        attribution=settings.attribution,
        surrogate=settings.surrogate,
        device=settings.device,
        precision=settings.precision,
        batch=settings.batch,
        signed=settings.signed,
    )
    blank = torch.zeros(1, 3, classifier.patch, classifier.patch)
    for notice in Reach(classifier.module, blank).notices([settings.method], [explainer.geometry]):
        log.warning("%s; choose an earlier --layer or --method none", notice)
    return explainer


def explain_slide(
    slide: Path | str,
    folder: Path | str,
    settings: RunSettings | None = None,
    *,
    explainer: Explainer | None = None,
    overwrite: bool = False,
    progress: bool = False,
) -> Result:
    """Turn a slide into a hidden-layer saliency heatmap that lies on it to the pixel.

    Parameters
    ----------
    slide
        A whole-slide image.
    folder
        Where the results go. They are written under a hidden name beside it; the folder appears when all of
        them are there. While another run works on it, this one waits.
    settings
        What to compute; the defaults of `RunSettings` if left out.
    explainer
        A classifier loaded by `load_explainer` with the same settings, to use for several slides.
    overwrite
        Replace a complete result; otherwise it is kept.
    progress
        Show a bar with patches, patches per second and the time left, where there is a terminal.

    Raises
    ------
    SlideError, ModelError, SettingsError, OutputError
        If the slide cannot be read, the classifier not explained, or the results not be written.
    """
    path, folder, settings = Path(slide), Path(folder), settings or RunSettings()
    kept = partial(_kept, path, folder, settings, explainer)
    if not overwrite and (result := kept()):
        return result
    with locked(folder):
        if not overwrite and (result := kept()):  # of the run that had the lock before
            return result
        with open_slide(path, settings.mpp) as opened:
            for warning in opened.warnings:
                log.warning("%s: %s", path.name, warning)
            explainer = explainer or load_explainer(settings)
            with growing(folder, _may_replace) as work:
                record = _write_results(opened, explainer, settings, work, progress=progress)
    return Result(folder, record)


def check_job(slide: Path, folder: Path, settings: RunSettings, *, overwrite: bool = False) -> None:
    """Find out what would stop a run, as far as that is quickly done, before the classifier is loaded.

    Raises
    ------
    SlideError, OutputError
        If the slide cannot be opened, or nothing can be written to the folder.
    """
    with locked(folder):
        if slide.exists() and not overwrite and read_record(folder):
            return
        open_slide(slide, settings.mpp).close()
        check_free(folder, _may_replace)


def _kept(path: Path, folder: Path, settings: RunSettings, explainer: Explainer | None) -> Result | None:
    """Return the complete result that is there, with what it differs in from what is asked."""
    record = read_record(folder)
    if record is None:
        return None
    weights = weight_hashes(explainer) if explainer else None
    return Result(folder, record, kept=True, differences=differences(record, path, settings, weights))


def _may_replace(folder: Path) -> bool:
    """Whether a folder is a result, and nobody has put folders of his own into it."""
    if read_record(folder) is None:
        return False
    for inside in sorted(folder.iterdir()):
        if inside.is_dir() and inside.name != ZARR:
            raise OutputError(
                f"{folder}: holds more than a result ({inside.name}); move that, "
                "or choose another folder with -o"
            )
    return True


def _write_results(
    slide: Slide, explainer: Explainer, settings: RunSettings, work: Path, *, progress: bool
) -> dict[str, Any]:
    """Explain a slide; write everything to the folder ``work``, the record last, and return that."""
    clock = Stopwatch()
    with clock.station("tissue"):
        plan = plan_slide(slide, explainer, settings)
    with clock.station("drift"):
        plan = with_drift(plan, settings.workers)
    if not plan.tiles:
        log.warning("%s: no tissue found; the map is complete and empty", slide.path.name)
    heatmap, predictions = _explain_tiles(plan, settings, work, clock, progress=progress)
    with clock.station("tiff"):
        write_ome_tiff(work / TIFF, heatmap)
    with clock.station("overview"):
        _write_overview(work / OVERVIEW, plan, heatmap, predictions, settings.range)
    record = run_record(plan, settings, predictions, clock)
    with writing(work / RUN_JSON):
        (work / RUN_JSON).write_text(json.dumps(record, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    return record


def _explain_tiles(
    plan: Plan, settings: RunSettings, work: Path, clock: Stopwatch, *, progress: bool
) -> tuple[Heatmap, Predictions]:
    """Stream the patches through the classifier, their maps to the OME-Zarr, their figures to the table."""
    layer = plan.explainer.geometry
    store = HeatmapWriter.create(
        work / ZARR, plan.cells, heatmap_info(plan), settings.ome_zarr, settings.range
    )
    stitcher = Stitcher(
        plan.grid, plan.tiles, layer.cell_w, layer.cell_h, _near_tissue(plan, store.write_rows)
    )
    reader = PatchReader(plan.slide, plan.grid, plan.tiles, settings.workers)
    shares = iter(plan.tissue_shares)
    said: list[float] = []  # probabilities of the target
    with (
        _tile_table(work / TILES, plan) as write_row,
        tqdm(
            total=len(plan.tiles),
            desc=printable(plan.slide.path.name),
            unit="patch",
            disable=None if progress else True,
        ) as bar,
    ):
        for tiles, patches in clock.iterate("read", reader.batches(plan.explainer.batch)):
            with clock.station("explain"):
                explanation = plan.explainer(patches)
            with clock.station("stitch"):
                for tile, cell_map in zip(tiles, explanation.maps.numpy(), strict=True):
                    stitcher.add(tile, cell_map)
                said += _write_tiles(write_row, plan, tiles, shares, explanation)
            bar.update(len(tiles))
    with clock.station("zarr"):
        stitcher.finish()
        return store.finish(), Predictions.of(_target_name(plan), said)


def _target_name(plan: Plan) -> str:
    return plan.explainer.classifier.class_names[plan.explainer.target]


def _near_tissue(plan: Plan, write_rows: _WriteRows) -> _WriteRows:
    """Put 0 where there is no tissue near, unless every patch of the slide was wanted."""
    if len(plan.tiles) == len(plan.grid):
        return write_rows
    return lambda cell_y, rows: write_rows(cell_y, np.where(plan.near_tissue(cell_y, len(rows)), rows, 0))


def heatmap_info(plan: Plan) -> HeatmapInfo:
    """Collect what the heatmap's files say about themselves."""
    explainer, classifier = plan.explainer, plan.explainer.classifier
    network = explainer.network
    target = _target_name(plan)
    return HeatmapInfo(
        slide_name=plan.slide.path.name,
        slide_size=plan.slide.size,
        slide_mpp=plan.slide.mpp,
        placement=plan.placement,
        channel=" · ".join([network.quantity, network.method, network.layer, target]),
        details={
            "model": classifier.uri,
            "model_sha256": classifier.sha256,
            "method": network.method,
            "attribution": network.attribution,
            "values": "magnitude" if network.is_magnitude else "signed",
            "layer": network.layer,
            "target": target,
        },
    )


@contextmanager
def _tile_table(path: Path, plan: Plan) -> Iterator[_WriteRow]:
    """Open ``tiles.csv``; yields the function that writes a row."""
    names = [f"probability_{name}" for name in plan.explainer.classifier.class_names]
    with ExitStack() as stack:
        with writing(path):
            file = stack.enter_context(path.open("w", newline="", encoding="utf-8"))
        rows = csv.writer(file)

        def write(row: Sequence[object]) -> None:
            with writing(path):
                rows.writerow(row)

        write(["x", "y", "w", "h", "tissue", *names, "saliency_mean", "saliency_max"])
        yield write
        with writing(path):
            file.close()


def _write_tiles(
    write_row: _WriteRow, plan: Plan, tiles: Sequence[Tile], shares: Iterator[float], explanation: Explanation
) -> list[float]:
    """Write the rows of some tiles, and return their probabilities of the target."""
    scores = probabilities(explanation.logits, plan.explainer.classifier.output).tolist()
    flat = explanation.maps.flatten(1)
    for tile, tissue, score, mean, largest in zip(
        tiles, shares, scores, flat.mean(1).tolist(), flat.amax(1).tolist(), strict=False
    ):
        figures = [f"{value:.6g}" for value in (*score, mean, largest)]
        write_row([*plan.grid.level0_box(tile), f"{tissue:.4f}", *figures])
    return [score[plan.explainer.target] for score in scores]


def _write_overview(
    path: Path,
    plan: Plan,
    heatmap: Heatmap,
    predictions: Predictions,
    value_range: tuple[float, float] | None,
) -> None:
    size = plan.slide.size
    thumbnail = plan.slide.read(Region(0, 0, size.w, size.h), thumbnail_size(size))
    network = plan.explainer.network
    write_overview(
        path,
        thumbnail,
        heatmap,
        label=f"{network.quantity}, {_target_name(plan)} logit",
        signed=not network.is_magnitude,
        predictions=predictions,
        value_range=value_range,
    )
