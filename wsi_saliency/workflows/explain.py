"""One slide end to end: cut into patches, each explained at hidden layers, laid back over the slide."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from wsi_saliency.errors import OutputError, SettingsError
from wsi_saliency.files import carry, check_free, growing, locked
from wsi_saliency.heatmap.contact_sheet import write_contact_sheet
from wsi_saliency.heatmap.dicom import check_installed
from wsi_saliency.heatmap.differences import differences
from wsi_saliency.heatmap.exports import export, export_again
from wsi_saliency.heatmap.ome_tiff import write_ome_tiff
from wsi_saliency.heatmap.overview import Predictions, thumbnail_size, write_overview
from wsi_saliency.heatmap.quality_counts import quality_counts
from wsi_saliency.heatmap.result import OVERVIEW, TILES, ZARR, MapFiles, Result, write_record
from wsi_saliency.heatmap.snapshot import DamagedSnapshotError
from wsi_saliency.models.loading import load_chosen
from wsi_saliency.report.slide_page import write_slide_page
from wsi_saliency.saliency.engine import Explainer
from wsi_saliency.saliency.reach import Reach
from wsi_saliency.settings import RunSettings
from wsi_saliency.slides.opening import open_slide
from wsi_saliency.slides.store import facts_of
from wsi_saliency.slides.whole import read_whole
from wsi_saliency.urls import home_of, is_url, located, name_of, shown
from wsi_saliency.workflows.beside import beside
from wsi_saliency.workflows.first_look import look_at
from wsi_saliency.workflows.journal import Journal
from wsi_saliency.workflows.plan import Plan, plan_slide, with_drift
from wsi_saliency.workflows.progress import download, shown_by, silence
from wsi_saliency.workflows.record import (
    Stopwatch,
    finished,
    grid_facts,
    map_record,
    run_record,
    weight_hashes,
)
from wsi_saliency.workflows.streaming import explain_tiles

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from wsi_saliency.heatmap.ome_zarr import Heatmap
    from wsi_saliency.mapspec import MapSpec
    from wsi_saliency.models.classifier import Classifier
    from wsi_saliency.slides.slide import Slide
    from wsi_saliency.urls import Location
    from wsi_saliency.workflows.ahead import Prepared
    from wsi_saliency.workflows.first_look import FirstLook
    from wsi_saliency.workflows.progress import Progress

log = logging.getLogger(__name__)


def load_explainer(settings: RunSettings, classifier: Classifier | None = None) -> Explainer:
    """Load the classifier that the settings name, and find the layers and the targets in it.

    Parameters
    ----------
    settings
        What to compute.
    classifier
        One to take in place of the one that the settings name, from `wsi_saliency.own_classifier`, say.

    Raises
    ------
    ModelError, SettingsError
        If the classifier cannot be loaded, there is no such layer, target or device, or what an export
        needs is not installed.
    """
    check_installed(settings)
    model = settings.model if classifier is None else classifier.uri
    classifier = classifier or load_chosen(settings)
    for note in classifier.notes:
        log.warning("%s: %s", model, note)
    explainer = Explainer.of(
        classifier,
        layers=settings.layers,
        targets=settings.targets,
        methods=settings.methods,
        attributions=settings.attributions,
        surrogate=settings.surrogate,
        device=settings.device,
        precision=settings.precision,
        batch=settings.batch,
        signed=settings.signed,
    )
    blank = torch.zeros(1, 3, classifier.patch, classifier.patch)
    layers = {spec.layer: explainer.geometry(spec) for spec in explainer.maps}
    for notice in Reach(classifier.module, blank).notices(settings.methods, layers.values()):
        log.warning("%s", notice)
    return explainer


def explain_slide(
    slide: Location | str,
    folder: Path | str,
    settings: RunSettings | None = None,
    *,
    explainer: Explainer | None = None,
    overwrite: bool = False,
    wait: bool = True,
    progress: bool | Progress = False,
    prepared: Prepared | None = None,
    url: str = "",
) -> Result:
    """Turn a slide into hidden-layer saliency heatmaps that lie on it to the pixel.

    The slide is read once, whatever the number of maps. Maps and exports that a complete result lacks are
    added to it.

    Parameters
    ----------
    slide
        A whole-slide image, a file or a URL.
    folder
        Where the results go. They are written under a hidden name beside it; the folder appears when all of
        them are there.
    settings
        What to compute; the defaults of `RunSettings` if left out.
    explainer
        A classifier loaded by `load_explainer` with the same settings, to use for several slides.
    overwrite
        Replace a complete result; otherwise it is kept.
    wait
        Wait while another run works on the folder; otherwise `BusyError` says so.
    progress
        Show a bar with patches, patches per second and the time left, where there is a terminal; or whatever
        shows it elsewhere.
    prepared
        The slide, if it was looked at ahead; it is closed.
    url
        Where the results go from there, if they do: exports name it.

    Raises
    ------
    SlideError, ModelError, SettingsError, OutputError
        If the slide cannot be read, the classifier not explained, or the results not be written.
    """
    if is_url(folder):
        raise SettingsError(f"{shown(folder)}: is a URL; give a folder, or the URL to wsi-saliency run -o")
    path, folder, settings = located(slide), Path(folder), settings or RunSettings()
    before = None if overwrite else Result.read(folder)
    if before and (kept := stays(before, path, settings, explainer)):
        return kept
    check_installed(settings)
    with locked(folder, wait=wait):
        if not overwrite and (kept := _kept(path, folder, settings, explainer)):
            if kept.differences or not kept.lacks_exports(settings):
                return kept  # of the run that had the lock before
            return _export_again(path, replace(kept, url=url), settings)
        show = shown_by(progress)
        with prepared.slide if prepared else _opened(path, settings, show) as opened:
            for warning in opened.warnings:
                log.warning("%s: %s", opened.name, warning)
            explainer = explainer or load_explainer(settings)
            before = None if overwrite else Result.read(folder)
            if before and (unlike := differences(before, path, settings, weight_hashes(explainer))):
                return replace(before, kept=True, differences=unlike)
            # A map that is added has the channels of the others, in their order.
            explaining = replace(explainer, targets=before.target_indices) if before else explainer
            seen = prepared.seen if prepared else None
            try:
                return _explain(
                    opened,
                    folder,
                    explaining,
                    settings,
                    before,
                    show,
                    resume=not overwrite,
                    seen=seen,
                    url=url,
                )
            finally:  # what did not fit here does not fit in the next slide
                explainer.batch = min(explainer.batch, explaining.batch)


def stays(
    result: Result, slide: Location, settings: RunSettings, explainer: Explainer | None = None
) -> Result | None:
    """Return a complete result, if nothing is to be made of it or added to it; None if something is.

    Its differences from what is asked for say whether it is kept in spite of them.
    """
    kept = _compared(result, slide, settings, explainer)
    return kept if kept and (kept.differences or not kept.lacks_exports(settings)) else None


def _opened(path: Location, settings: RunSettings, progress: Progress = silence) -> Slide:
    """Open a slide; one from a URL is brought here first."""
    return open_slide(path, settings.mpp, cache=settings, watch=download(progress, name_of(path)))


def check_job(
    slide: Location, folder: Path, settings: RunSettings, *, overwrite: bool = False, wait: bool = True
) -> None:
    """Find out what would stop a run, as far as that is quickly done, before the classifier is loaded.

    Raises
    ------
    SlideError, OutputError
        If the slide cannot be opened, or nothing can be written to the folder; `BusyError` if another run
        works on it and ``wait`` is False.
    """
    with locked(folder, wait=wait):
        if not isinstance(slide, Path):
            facts_of(slide)  # to bring it here is not quickly done
        elif slide.exists() and not overwrite and _kept(slide, folder, settings, None):
            return
        else:
            open_slide(slide, settings.mpp).close()
        check_free(folder, _may_replace)


def _kept(path: Location, folder: Path, settings: RunSettings, explainer: Explainer | None) -> Result | None:
    """Return the complete result that is there, unless it lacks a map that can be added."""
    result = Result.read(folder)
    return result and _compared(result, path, settings, explainer)


def _compared(
    result: Result, path: Location, settings: RunSettings, explainer: Explainer | None
) -> Result | None:
    """Return a complete result with its differences, unless it lacks a map that can be added."""
    unlike = differences(result, path, settings, weight_hashes(explainer) if explainer else None)
    if unlike or result.has(settings):
        return replace(result, kept=True, differences=unlike)
    return None


def _export_again(path: Location, kept: Result, settings: RunSettings) -> Result:
    """Make exports of a result anew, and the page that names them; that stays where the slide has gone."""
    if isinstance(path, Path) and not path.exists():
        return export_again(kept, settings, _may_replace)
    where = kept.record["slide"] | {"path": home_of(path)}  # it may have been moved
    with _opened(path, settings) as slide:
        kept = replace(kept, record=kept.record | {"slide": where}, slide_file=slide.source.file)
        (thumbnail,) = read_whole(slide, [thumbnail_size(slide.size)], settings.workers)

        def show(grown: Result) -> None:
            write_slide_page(grown, slide, thumbnail)

        return export_again(kept, settings, _may_replace, show)


def _may_replace(folder: Path) -> bool:
    """Whether a folder is a result, and nobody has put folders of his own into it."""
    result = Result.read(folder)
    if result is None:
        return False
    ours = {result.files(found.spec).ome_zarr for found in result.maps} if result.is_current else {ZARR}
    for inside in sorted(folder.iterdir()):
        if inside.is_dir() and inside.name not in ours:
            raise OutputError(
                f"{folder}: holds more than a result ({inside.name}); move that, "
                "or choose another folder with -o"
            )
    return True


def _explain(
    slide: Slide,
    folder: Path,
    explainer: Explainer,
    settings: RunSettings,
    before: Result | None,
    progress: Progress,
    *,
    resume: bool,
    seen: FirstLook | None = None,
    url: str = "",
) -> Result:
    """Make the maps that are not there yet, and put the result in its place."""
    clock = Stopwatch()
    there = {found.spec: int(found.layer["reduction"]) for found in before.maps} if before else {}
    with clock.station("tissue"):
        watch = partial(progress, f"{slide.name}: tissue", unit="piece")
        seen = seen or look_at(slide, settings.workers, watch, quality=settings.qc)
        plan = plan_slide(slide, explainer, settings, there, seen)
    if before and not plan.maps:
        return replace(before, kept=True)
    if before and grid_facts(plan) != before.record["grid"]:
        return replace(before, kept=True, differences=(_other_grid(plan, before),))
    if not plan.tiles:
        log.warning("%s: no tissue found; the map is complete and empty", slide.name)
    writes = resume or Result.read(folder) is None  # what replaces a result is not gone on with
    with (
        growing(folder, _may_replace, resume=resume) as work,
        Journal.open(work, plan, settings, clock, before, writes=writes) as journal,
    ):
        try:
            made = _make_maps(plan, settings, work, journal, before, progress)
        except DamagedSnapshotError as error:
            journal.start_anew(str(error))
            made = _make_maps(plan, settings, work, journal, before, progress)
        grown = replace(Result.growing(work, made.record, folder), slide_file=slide.source.file, url=url)
        exported = _show(grown, made, plan, settings, clock)
        write_record(work, finished(made.record, clock, exported))
    result = Result.read(folder)
    assert result is not None
    return replace(result, added=plan.maps if before else ())


def _other_grid(plan: Plan, before: Result) -> str:
    earlier = before.record["grid"]["stride"]
    return f"patches {earlier} px apart, which does not suit the new layers (now {plan.grid.stride})"


@dataclass(frozen=True)
class _Made:
    """What there is when all patches are explained: the record, the new maps, what is said of the target."""

    record: dict[str, Any]
    heatmaps: dict[MapSpec, Heatmap]
    predictions: Predictions


def _make_maps(
    plan: Plan,
    settings: RunSettings,
    work: Path,
    journal: Journal,
    before: Result | None,
    progress: Progress,
) -> _Made:
    """Explain a slide; write its maps as stores, and the table of patches, to the folder ``work``."""
    with journal.clock.station("drift"):
        plan = journal.placed() or with_drift(plan, settings.workers)
    if before and not journal.saved:
        _carry_over(before, plan, work)
    heatmaps, predictions = explain_tiles(plan, settings, work, journal, before=before, progress=progress)
    earlier = before.maps if before else ()
    maps = [*earlier, *(map_record(plan, spec, heatmap) for spec, heatmap in heatmaps.items())]
    record = run_record(plan, settings, maps, predictions, before)
    return _Made(record | {"quality": quality_counts(work / TILES)}, heatmaps, predictions[0])


def _show(
    grown: Result, made: _Made, plan: Plan, settings: RunSettings, clock: Stopwatch
) -> dict[str, dict[str, Any]]:
    """Write all that is made from the maps; return what is said of exports.

    Half of the time goes into compressing pictures, which leaves a processor to the rest.
    """
    pictures = {OVERVIEW, *(grown.files(found.spec).overview for found in grown.maps)}
    with beside(partial(_draw, grown, made, plan, settings, clock)):
        with clock.station("tiff"):
            for spec, heatmap in made.heatmaps.items():
                write_ome_tiff(grown.folder / grown.files(spec).ome_tiff, heatmap)
        with clock.station("exports"):
            exported = export(grown)
        with clock.station("report"):
            write_slide_page(grown, plan.slide, plan.seen.thumbnail, coming=pictures)
    return exported


def _draw(grown: Result, made: _Made, plan: Plan, settings: RunSettings, clock: Stopwatch) -> None:
    """Draw each new map, and all maps of a result that has several in one picture."""
    with clock.station("overview"):
        for spec, heatmap in made.heatmaps.items():
            path = grown.folder / grown.files(spec).overview
            _write_overview(path, plan, spec, heatmap, made.predictions, settings)
        if len(grown.maps) > 1:
            _write_contact_sheet(grown, plan.seen.thumbnail, made.predictions, settings)


def _write_contact_sheet(
    grown: Result, thumbnail: NDArray[np.uint8], predictions: Predictions, settings: RunSettings
) -> None:
    shown = [(found, grown.heatmap(found.spec)) for found in grown.maps]
    write_contact_sheet(grown.folder / OVERVIEW, thumbnail, shown, predictions, settings.range)


def _carry_over(before: Result, plan: Plan, work: Path) -> None:
    """Take the files of the maps that are there over, under the names that they have among several."""
    specs = [found.spec for found in before.maps]
    names = MapFiles.of([*specs, *plan.maps])
    for spec in specs:
        old, new = before.files(spec), names[spec]
        for name, renamed in (
            (old.ome_zarr, new.ome_zarr),
            (old.ome_tiff, new.ome_tiff),
            (old.overview, new.overview),
        ):
            carry(before.folder / name, work / renamed)


def _write_overview(
    path: Path,
    plan: Plan,
    spec: MapSpec,
    heatmap: Heatmap,
    predictions: Predictions,
    settings: RunSettings,
) -> None:
    """Draw the map of the first target."""
    network = plan.explainer.network
    write_overview(
        path,
        plan.seen.thumbnail,
        heatmap,
        label=f"{network.quantity(spec.attribution)}, {plan.explainer.target_names[0]} logit",
        signed=not network.is_magnitude(spec.attribution),
        predictions=predictions,
        value_range=settings.range,
    )
