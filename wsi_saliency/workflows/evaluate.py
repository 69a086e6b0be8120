"""Evaluating: patches of slides are explained in many ways, and the maps are judged."""

from __future__ import annotations

import os
import platform
import time
from collections import Counter
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from tqdm import tqdm

from wsi_saliency.errors import ModelError, OutputError, SlideError
from wsi_saliency.evaluation.maps import kind_of
from wsi_saliency.evaluation.measured import Evaluation, Example, SanityStage, Stability, with_phase
from wsi_saliency.evaluation.sanity import cascade, parts_of
from wsi_saliency.evaluation.stability import GridStability
from wsi_saliency.files import check_folder, filling, locked, writing
from wsi_saliency.heatmap.result import RUN_JSON
from wsi_saliency.mapspec import PLAIN, MapSpec
from wsi_saliency.report.outputs import INDEX_HTML, METRICS_JSON, write_report
from wsi_saliency.report.plots import PICTURES
from wsi_saliency.saliency.network import Network
from wsi_saliency.saliency.smoothing import SMOOTHING
from wsi_saliency.settings import EvaluationSettings
from wsi_saliency.slides.opening import open_slide
from wsi_saliency.slides.tissue import tissue_mask
from wsi_saliency.urls import located, name_of, shown
from wsi_saliency.workflows.canvas import canvas_for, wanted_mpp
from wsi_saliency.workflows.evaluated import EvaluatedClassifier
from wsi_saliency.workflows.localised import annotations_on, localised_on
from wsi_saliency.workflows.progress import download, shown_by

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor, nn

    from wsi_saliency.evaluation.map_comparison import MapComparison, MapScores
    from wsi_saliency.evaluation.maps import PatchMaps
    from wsi_saliency.evaluation.measured import MapKind, Phase
    from wsi_saliency.urls import Location
    from wsi_saliency.workflows.sampling import PatchSample

    Maps = dict[MapKind, PatchMaps]
    Progress = Callable[[int], object]

MAPS = "maps"  # folder, in that of the evaluation, of the slides' maps
OVERLAPS = (0.5, 0.75)  # of the grids whose stability is measured
SANITY_PATCHES = 32  # a mean over so many tells a map that changes from one that does not
EXAMPLES = 4
_PACKAGES = ("wsi-saliency", "torch", "timm", "numpy")


def evaluate_slide(
    slide: Location | str,
    folder: Path | str,
    settings: EvaluationSettings | None = None,
    *,
    overwrite: bool = False,
    progress: bool = False,
) -> Evaluation:
    """Evaluate maps on patches of one slide; as `evaluate_slides`."""
    return evaluate_slides([slide], folder, settings, overwrite=overwrite, progress=progress)


def evaluate_slides(
    slides: Sequence[Location | str],
    folder: Path | str,
    settings: EvaluationSettings | None = None,
    *,
    overwrite: bool = False,
    progress: bool = False,
) -> Evaluation:
    """Find out which method, attribution and layer explain a classifier best on the tissue of some slides.

    Parameters
    ----------
    slides
        Whole-slide images, files or URLs.
    folder
        Where the report goes: ``index.html``, pictures, ``metrics.json``, ``metrics.csv``, ``curves.npz``;
        and in ``maps`` the slides' maps, if there are annotations to compare them with. The report appears
        when all of it is there; maps that are complete stay when an evaluation is broken off.
    settings
        What is compared and how; the defaults of `EvaluationSettings` if left out.
    overwrite
        Replace a report that is there.
    progress
        Show a bar, where there is a terminal.

    Raises
    ------
    SlideError, ModelError, SettingsError, OutputError
        If a slide or its annotations cannot be read, the classifier not be explained, no patch be found, or
        the report not be written.
    """
    settings, folder = settings or EvaluationSettings(), Path(folder)
    named = distinct_names(located(slide) for slide in slides)
    _check_free(folder, overwrite=overwrite)
    with locked(folder / METRICS_JSON):
        _check_free(folder, overwrite=overwrite)  # another run may have been at it meanwhile
        try:
            evaluation = _evaluate(named, folder / MAPS, settings, progress=progress)
        except SlideError as e:
            if len(named) == 1:
                raise
            raise SlideError(
                f"{e} (an evaluation needs all its slides; leave out what cannot be used)"
            ) from e
        except torch.OutOfMemoryError as e:
            raise ModelError(
                f"{settings.model}: the patches do not fit into the device's memory, not even when they are "
                "explained one at a time; use fewer --patches, or --device cpu"
            ) from e
        with filling(folder, METRICS_JSON, [f"{name}.png" for name in PICTURES]) as work:
            write_report(evaluation, work)
    return evaluation


def _check_free(folder: Path, *, overwrite: bool) -> None:
    """Find out before the work whether a report may be written there."""
    check_folder(folder)
    with writing(folder):
        if any(folder.glob(f"*/{RUN_JSON}")):  # whose page of all slides has the same name
            raise OutputError(f"{folder}: holds results of wsi-saliency run; choose another folder with -o")
        if not overwrite and any((folder / name).exists() for name in (METRICS_JSON, INDEX_HTML)):
            raise OutputError(
                f"{folder}: holds an evaluation already; --overwrite replaces it, -o names another folder"
            )


def _evaluate(
    named: dict[Location, str], maps: Path, settings: EvaluationSettings, *, progress: bool
) -> Evaluation:
    """Do everything but the report; ``named`` are the slides and their `distinct_names`."""
    started, start = datetime.now(UTC), time.perf_counter()
    for path in named:
        watch = download(shown_by(progress), name_of(path))
        # raises before the classifier is loaded, not after
        open_slide(path, settings.mpp, cache=settings, watch=watch).close()
    drawn = annotations_on(named, settings)
    evaluated = EvaluatedClassifier.of(settings)
    patches = evaluated.sample(list(named), progress=progress)
    comparison = evaluated.comparison(patches)
    judged = _judge(evaluated, named, patches, comparison, progress=progress)
    localised = [
        row
        for path, on_it in drawn.items()  # slides of one stem would have shared their annotations: refused
        for of_slide in [maps / PurePath(name_of(path)).stem]
        for row in localised_on(evaluated, path, named[path], on_it, of_slide, progress=progress)
    ]
    facts = _facts(evaluated, named, comparison) | {
        "started": started.isoformat(timespec="seconds"),
        "seconds": round(time.perf_counter() - start, 1),
    }
    return Evaluation(
        facts,
        _patch_rows(patches, named, comparison),
        with_phase(judged.scores.scored, judged.phase),
        judged.scores.prediction_difference,
        judged.phase,
        judged.stability,
        judged.sanity,
        localised,
        _examples(evaluated, patches, comparison, judged.scores),
    )


def distinct_names(slides: Iterable[Location]) -> dict[Location, str]:
    """Name slides, each once: by their files, and by the folders too where two files have the same name.

    Such names are relative to the folder that all of these slides are in, or whole URLs.
    """
    slides = list(dict.fromkeys(slides))
    shared = Counter(map(name_of, slides))
    alike = [path for path in slides if shared[name_of(path)] > 1]
    whole = {path: Path(os.path.abspath(path)) for path in alike if isinstance(path, Path)}
    root = os.path.commonpath([path.parent for path in whole.values()]) if whole else ""
    longer = {place: shown(place) for place in alike}
    longer |= {path: path_in_full.relative_to(root).as_posix() for path, path_in_full in whole.items()}
    return {path: longer.get(path, name_of(path)) for path in slides}


class _Judgement(NamedTuple):
    """What is found of patches, and of the parts of slides around them."""

    scores: MapScores
    phase: list[Phase]
    stability: list[Stability]
    sanity: list[SanityStage]


def _judge(
    evaluated: EvaluatedClassifier,
    named: dict[Location, str],
    patches: PatchSample,
    comparison: MapComparison,
    *,
    progress: bool,
) -> _Judgement:
    """Plan all that the bar counts, and do it."""
    grids = list(_grids(evaluated, named))
    checks = list(_sanity_checks(evaluated, comparison))
    cost = comparison.cost + evaluated.phase_cost(comparison)
    cost += sum(grid.cost for *_, grid in grids) + sum(each for each, _ in checks)
    with tqdm(total=cost, desc="evaluating", unit="image", disable=None if progress else True) as bar:
        scores = comparison.run(bar.update)
        return _Judgement(
            scores,
            evaluated.phase(patches, comparison, scores.explained, bar.update),
            [row for grid in grids for row in _stability(evaluated, *grid, bar.update)],
            [row for _, check in checks for row in check(scores.explained, bar.update)],
        )


# ------------------------------------------------------------------------------- stability of the grid

_Grid = tuple["Location", str, float, GridStability[MapSpec]]


def _grids(evaluated: EvaluatedClassifier, named: dict[Location, str]) -> Iterator[_Grid]:
    """Plan the regions that are mapped twice."""
    if not evaluated.settings.stability_mpx:
        return
    layers = {spec: evaluated.network.geometry[spec] for spec in evaluated.main}
    patch, most = evaluated.classifier.patch, round(evaluated.settings.stability_mpx * 1e6)
    for path, name in named.items():
        with open_slide(path, evaluated.settings.mpp, cache=evaluated.settings) as slide:
            canvas, tissue = canvas_for(slide, wanted_mpp(evaluated.classifier)), tissue_mask(slide)
        for overlap in OVERLAPS:
            grid = GridStability(tissue, canvas, layers, evaluated.patch_maps, patch, overlap, most)
            yield path, name, overlap, grid


def _stability(
    evaluated: EvaluatedClassifier,
    path: Location,
    name: str,
    overlap: float,
    grid: GridStability[MapSpec],
    progress: Progress,
) -> Iterator[Stability]:
    with open_slide(path, evaluated.settings.mpp, cache=evaluated.settings) as slide:
        found = grid.measure(slide, evaluated.settings.workers, progress)
    for spec in evaluated.main:
        yield Stability(name, spec.method, spec.attribution, spec.layer, overlap, found[spec])


# -------------------------------------------------------------------------------------------- sanity

_Check = tuple[int, "Callable[[Maps, Progress], Iterator[SanityStage]]"]


def _sanity_checks(evaluated: EvaluatedClassifier, comparison: MapComparison) -> Iterator[_Check]:
    """Prepare the randomisation of the classifier; yields what each check costs, and the check.

    A surrogate imitates the trained layers; it would have to be trained again for each random network.
    """
    if not evaluated.settings.sanity:
        return
    some = comparison.of(slice(0, None, -(-len(comparison.images) // SANITY_PATCHES)))
    depth = 1 + len(parts_of(some.model, some.images[:1]))
    for spec in evaluated.main:
        if not SMOOTHING[spec.method].imitates:
            yield depth * (len(some.images) + some.scorer(PLAIN).cost), partial(_sanity, spec, some)


def _sanity(
    spec: MapSpec, comparison: MapComparison, explained: Maps, progress: Progress
) -> Iterator[SanityStage]:
    trained, scorer = comparison.network, comparison.scorer(PLAIN)
    placement = explained[kind_of(trained, spec)].placement

    def explain(module: nn.Module) -> NDArray[np.float32]:
        network = Network(module, (spec,), baseline_image=trained.baseline_image, precision=trained.precision)

        def maps(images: Tensor, target: Tensor) -> Tensor:
            found: list[Tensor] = []

            def take(_: MapSpec, __: int, values: Tensor) -> None:
                found.append(network.map_of(spec, values))

            network.explain(images, [target], take)
            return torch.cat(found)

        made = torch.cat(list(comparison.passes(maps)))
        progress(len(comparison.images))
        return made.numpy()

    def score(maps: NDArray[np.float32]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        curves = scorer(maps, placement=placement, progress=progress)
        return curves.insertion_auc.numpy(), curves.deletion_auc.numpy()

    for step in cascade(comparison.model, comparison.images, explain, score, seed=comparison.seed):
        yield SanityStage(spec.method, spec.attribution, spec.layer, *step)


# -------------------------------------------------------------------------------------------- report


def _patch_rows(
    patches: PatchSample, named: dict[Location, str], comparison: MapComparison
) -> list[dict[str, Any]]:
    """Say of each patch where it is from, and what the classifier says of it."""
    return [
        {"slide": named[path], "x": x, "y": y, "w": w, "h": h, "probability": float(p)}
        for path, (x, y, w, h), p in zip(
            patches.slides, patches.boxes, comparison.probabilities.tolist(), strict=True
        )
    ]


def _examples(
    evaluated: EvaluatedClassifier, patches: PatchSample, comparison: MapComparison, scores: MapScores
) -> list[Example]:
    """Show the maps of the patches that the classifier is surest of."""
    p = comparison.probabilities
    kinds = [kind_of(evaluated.network, spec) for spec in evaluated.main]
    return [
        Example(
            patches.patches[i],
            float(p[i]),
            {kind: scores.explained[kind].maps[i].numpy() for kind in kinds},
        )
        for i in p.argsort(descending=True, stable=True)[:EXAMPLES].tolist()
    ]


def _facts(
    evaluated: EvaluatedClassifier, named: dict[Location, str], comparison: MapComparison
) -> dict[str, Any]:
    c, network = evaluated.classifier, evaluated.network
    return {
        "settings": evaluated.settings.to_json(),
        "model": {
            "uri": c.uri,
            "architecture": c.architecture,
            "sha256": c.sha256,
            "classes": list(c.class_names),
            "patch": c.patch,
            "mpp": c.mpp,
        },
        "target": evaluated.target_name,
        "slides": list(named.values()),
        "patches": len(comparison.images),
        "pixels_per_step": comparison.scorer(PLAIN).step,
        "total_stride": evaluated.total_stride,
        "layers": {spec.layer: network.geometry[spec].reduction for spec in network.maps},
        "layer_of_slide_maps": evaluated.main[0].layer,
        "device": str(evaluated.device),
        "versions": {"python": platform.python_version()} | {name: version(name) for name in _PACKAGES},
    }
