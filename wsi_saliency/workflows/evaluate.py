"""Evaluating: patches of slides are explained in many ways, and the maps are judged."""

from __future__ import annotations

import csv
import logging
import os
import platform
import time
from collections import Counter
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property, partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from tqdm import tqdm

from wsi_saliency.errors import ModelError, OutputError, SettingsError, SlideError
from wsi_saliency.evaluation.annotations import Annotations, annotations_for, read_annotations
from wsi_saliency.evaluation.candidates import (
    PLAIN,
    Candidate,
    candidates,
    comparable_layers,
    main_layer,
)
from wsi_saliency.evaluation.contest import Contest, Outcome
from wsi_saliency.evaluation.localisation import localise, patch_probability_map
from wsi_saliency.evaluation.phase import Surroundings, coarse_moves, measure_phase
from wsi_saliency.evaluation.results import (
    Evaluation,
    Example,
    Localised,
    MapKind,
    SanityStage,
    Stability,
    with_phase,
)
from wsi_saliency.evaluation.sanity import cascade, stages
from wsi_saliency.evaluation.stability import GridStability, PatchMaps
from wsi_saliency.files import check_folder, filling, locked, writing
from wsi_saliency.heatmap.ome_zarr import Heatmap
from wsi_saliency.models.classifier import probabilities, standard_logits
from wsi_saliency.models.loading import load_classifier
from wsi_saliency.report.outputs import INDEX_HTML, METRICS_JSON, write_report
from wsi_saliency.report.plots import PICTURES
from wsi_saliency.saliency.cancellation import refusal, vanishing
from wsi_saliency.saliency.engine import DEFAULT_BATCH, Explainer, Network, choose_device, eval_mode
from wsi_saliency.saliency.reach import Reach
from wsi_saliency.saliency.smoothing import SMOOTHING
from wsi_saliency.saliency.surrogate import surrogate_for
from wsi_saliency.settings import METHODS, EvaluationSettings, RunSettings
from wsi_saliency.slides.opening import open_slide
from wsi_saliency.slides.tissue import tissue_mask
from wsi_saliency.workflows.canvas import canvas_for, wanted_mpp
from wsi_saliency.workflows.explain import Result, explain_slide
from wsi_saliency.workflows.record import TILES, ZARR
from wsi_saliency.workflows.sampling import Located, sample_located, with_margins

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from numpy.typing import NDArray
    from torch import Tensor, nn

    from wsi_saliency.evaluation.candidates import Explained
    from wsi_saliency.evaluation.results import Phase
    from wsi_saliency.models.classifier import Classifier
    from wsi_saliency.settings import Attribution, Method, Substrate

    Maps = dict[MapKind, Explained]
    Progress = Callable[[int], object]

log = logging.getLogger(__name__)

MAPS = "maps"  # folder, in that of the evaluation, of the slides' maps
OVERLAPS = (0.5, 0.75)  # of the grids whose stability is measured
SANITY_PATCHES = 32  # a mean over so many tells a map that changes from one that does not
EXAMPLES = 4
_DEFAULT_ATTRIBUTIONS: tuple[Attribution, ...] = ("gradient", "deeplift")
_PACKAGES = ("wsi-saliency", "torch", "timm", "numpy")


def evaluate_slide(
    slide: Path | str, folder: Path | str, settings: EvaluationSettings | None = None, **how: bool
) -> Evaluation:
    """Evaluate maps on patches of one slide; as `evaluate_slides`."""
    return evaluate_slides([slide], folder, settings, **how)


def evaluate_slides(
    slides: Sequence[Path | str],
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
        Whole-slide images.
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
    named = distinct_names(Path(slide) for slide in slides)
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
                f"{settings.model}: a pass does not fit into the device's memory; use a smaller --batch or "
                "--patches, or --device cpu"
            ) from e
        with filling(folder, METRICS_JSON, [f"{name}.png" for name in PICTURES]) as work:
            write_report(evaluation, work)
    return evaluation


def _check_free(folder: Path, *, overwrite: bool) -> None:
    """Find out before the work whether a report may be written there."""
    check_folder(folder)
    with writing(folder):
        if not overwrite and any((folder / name).exists() for name in (METRICS_JSON, INDEX_HTML)):
            raise OutputError(
                f"{folder}: holds an evaluation already; --overwrite replaces it, -o names another folder"
            )


def _evaluate(
    named: dict[Path, str], maps: Path, settings: EvaluationSettings, *, progress: bool
) -> Evaluation:
    """Do everything but the report; ``named`` are the slides and their `distinct_names`."""
    started, start = datetime.now(UTC), time.perf_counter()
    for path in named:
        open_slide(path, settings.mpp).close()  # raises before the classifier is loaded, not after
    drawn = _annotations(named, settings) if settings.annotations else {}
    subject = Subject.of(settings)
    patches = subject.sample(list(named), progress=progress)
    contest = subject.contest(patches)
    grids = list(_grids(subject, named))
    sane = list(_sanity_checks(subject, contest))
    total = (
        contest.cost
        + subject.phase_cost(contest)
        + sum(grid.patches for *_, grid in grids)
        + sum(cost for cost, _ in sane)
    )
    with tqdm(total=total, desc="evaluating", unit="image", disable=None if progress else True) as bar:
        outcome = contest.run(bar.update)
        phase = subject.phase(patches, contest, outcome, bar.update)
        stability = [row for grid in grids for row in _stability(subject, *grid, bar.update)]
        sanity = [row for _, check in sane for row in check(outcome.explained, bar.update)]
    localised = [
        row
        for path, on_it in drawn.items()  # slides of one stem would have shared their annotations: refused
        for row in _localised(subject, path, named[path], on_it, maps / path.stem, progress=progress)
    ]
    facts = _facts(subject, named, contest) | {
        "started": started.isoformat(timespec="seconds"),
        "seconds": round(time.perf_counter() - start, 1),
    }
    return Evaluation(
        facts,
        subject.patch_rows(patches, named, contest),
        with_phase(outcome.scored, phase),
        outcome.prediction_difference,
        phase,
        stability,
        sanity,
        localised,
        _examples(subject, patches, contest, outcome),
    )


def distinct_names(slides: Iterable[Path]) -> dict[Path, str]:
    """Name slides, each once: by their files, and by the folders too where two files have the same name.

    Such names are relative to the folder that all of these slides are in.
    """
    slides = list(dict.fromkeys(slides))
    shared = Counter(path.name for path in slides)
    whole = {path: Path(os.path.abspath(path)) for path in slides if shared[path.name] > 1}
    root = os.path.commonpath([path.parent for path in whole.values()]) if whole else ""
    longer = {path: path_in_full.relative_to(root).as_posix() for path, path_in_full in whole.items()}
    return {path: longer.get(path, path.name) for path in slides}


@dataclass(frozen=True)
class Subject:
    """The classifier under evaluation, on its device, and all methods × attributions × layers compared."""

    settings: EvaluationSettings
    classifier: Classifier
    device: torch.device
    target: int
    compared: list[Candidate]

    @classmethod
    def of(cls, settings: EvaluationSettings) -> Subject:
        """Load the classifier, and find the methods and layers that it can be explained by.

        Raises
        ------
        ModelError, SettingsError
            If the classifier, a method, a layer, the target or the device cannot be had.
        """
        classifier = load_classifier(
            settings.model, settings.weights, mpp=settings.model_mpp, patch=settings.patch
        )
        for note in classifier.notes:
            log.warning("%s: %s", settings.model, note)
        device = choose_device(settings.device)
        classifier.module.to(device)
        blank = torch.zeros(1, 3, classifier.patch, classifier.patch, device=device)
        compared = _with_maps(
            candidates(
                classifier.module,
                blank,
                settings.methods or _available_methods(classifier, settings),
                settings.attributions or _DEFAULT_ATTRIBUTIONS,
                comparable_layers(classifier.module, blank, settings.layers),
                surrogate=settings.surrogate,
                precision=settings.precision,
            ),
            asked=settings.attributions,
        )
        methods = dict.fromkeys(c.network.method for c in compared)
        layers = {c.kind.layer: c.geometry for c in compared if c.network.method == PLAIN}
        for notice in Reach(classifier.module, blank).notices(methods, layers.values()):
            log.warning("%s", notice)
        return cls(settings, classifier, device, classifier.target_index(settings.target), compared)

    @property
    def batch(self) -> int:
        """Patches per pass."""
        return self.settings.batch or DEFAULT_BATCH[self.device.type]

    @property
    def total_stride(self) -> int:
        """By how many pixels a picture has to move for the classifier to see the same."""
        return self.compared[0].geometry.total_stride

    @cached_property
    def main(self) -> list[Candidate]:
        """All methods × attributions at one layer, for what takes too long at every layer."""
        layer = main_layer(self.compared)
        return [c for c in self.compared if c.kind.layer == layer.name]

    def sample(self, slides: Sequence[Path], *, progress: bool) -> Located:
        """Sample the patches to judge by."""
        s = self.settings
        return sample_located(
            slides,
            self.classifier,
            s.patches,
            self._predicted_positive if s.predicted_positive else None,
            seed=s.seed,
            mpp=s.mpp,
            workers=s.workers,
            progress=progress,
        )

    def contest(self, patches: Located) -> Contest:
        """Set up the contest on some patches."""
        s, images = self.settings, self.classifier.normalised(patches.patches, self.device)
        return Contest(
            self.classifier.module,
            self.compared,
            images,
            torch.full((len(images),), self.target, device=self.device),
            self.classifier.output,
            self.batch,
            s.step,
            self._substrate(s.deletion_to),
            self._substrate(s.insertion_from),
            s.score_on,
            s.seed,
        )

    def phase_cost(self, contest: Contest) -> int:
        """How many images `phase` explains."""
        moves = min(self.settings.phase_moves, len(coarse_moves(self.total_stride)))
        return moves * len(contest.images) * len(self.compared)

    def phase(self, patches: Located, contest: Contest, outcome: Outcome, progress: Progress) -> list[Phase]:
        """Measure how much each map depends on where the picture lies between the network's strides."""
        s = self.settings
        if not self.phase_cost(contest):
            return []
        around = with_margins(patches, self.total_stride, mpp=s.mpp, workers=s.workers)
        surroundings = Surroundings(
            self.classifier.normalised(around.pictures, self.device),
            around.corners,
            around.inside,
            self.total_stride,
        )
        return measure_phase(
            self.compared,
            outcome.explained,
            surroundings,
            contest.target,
            self.batch,
            moves=s.phase_moves,
            seed=s.seed,
            progress=progress,
        )

    def explainer(self, candidate: Candidate) -> Explainer:
        """Return what explains RGB patches as a candidate does."""
        return Explainer(
            self.classifier, candidate.network, candidate.geometry, self.target, self.device, self.batch
        )

    def patch_rows(self, patches: Located, named: dict[Path, str], contest: Contest) -> list[dict[str, Any]]:
        """Say of each patch where it is from, and what the classifier says of it."""
        return [
            {"slide": named[path], "x": x, "y": y, "w": w, "h": h, "probability": float(p)}
            for path, (x, y, w, h), p in zip(
                patches.slides, patches.boxes, contest.probabilities.tolist(), strict=True
            )
        ]

    def _substrate(self, name: Substrate) -> Substrate | Tensor:
        if name != "white":
            return name
        mean, std = (torch.tensor(v, device=self.device) for v in (self.classifier.mean, self.classifier.std))
        return ((1 - mean) / std).view(3, 1, 1)

    @torch.no_grad()
    def _predicted_positive(self, patches: NDArray[np.uint8]) -> NDArray[np.bool_]:
        found = []
        with eval_mode(self.classifier.module):
            for start in range(0, len(patches), self.batch):
                images = self.classifier.normalised(patches[start : start + self.batch], self.device)
                p = probabilities(standard_logits(self.classifier.module(images)), self.classifier.output)
                found.append((p[:, self.target] > 0.5).cpu().numpy())
        return np.concatenate(found)


def _with_maps(compared: list[Candidate], asked: Sequence[Attribution]) -> list[Candidate]:
    """Leave out what would be rounding noise; refuse it where it was asked for."""
    networks = {(c.network.attribution, c.network.layer): c.network for c in compared}
    noise = {
        (attribution, layer)
        for (attribution, layer), n in networks.items()
        if vanishing(n.module, layer, n.baseline_image, [attribution])
    }
    for attribution, layer in sorted(noise):
        if asked or len(noise) == len(networks):
            raise refusal(attribution, layer)
        log.warning("%s at layer %r is left out: its map would be rounding noise", attribution, layer)
    return [c for c in compared if (c.network.attribution, c.network.layer) not in noise]


def _available_methods(classifier: Classifier, settings: EvaluationSettings) -> tuple[Method, ...]:
    """All methods; without the surrogate where none is given and none comes with the classifier."""
    if settings.surrogate is None:
        try:
            surrogate_for(classifier.module)
        except ModelError as reason:
            log.info("surrogate is left out: %s", reason)
            return tuple(m for m in METHODS if not SMOOTHING[m].imitates)
    return METHODS


def _annotations(slides: Iterable[Path], settings: EvaluationSettings) -> dict[Path, Annotations]:
    """Read what is drawn on slides, and make sure that it is on them."""
    assert settings.annotations is not None
    files: dict[Path, Path] = {}  # and their slides
    for slide in slides:
        file = annotations_for(slide, settings.annotations)
        if other := files.get(file):
            raise SettingsError(
                f"{file}: cannot be of both {other} and {slide}; --annotations takes the file of one slide, "
                "or a folder with a file of each slide's name"
            )
        files[file] = slide
    return {slide: _drawn_on(slide, file, settings) for file, slide in files.items()}


def _drawn_on(slide: Path, file: Path, settings: EvaluationSettings) -> Annotations:
    drawn = read_annotations(file).only(settings.annotation_classes).scaled(settings.annotation_scale)
    with open_slide(slide, settings.mpp) as opened:
        drawn.check_on(opened.size)
    return drawn


# ------------------------------------------------------------------------------- stability of the grid

_Grid = tuple[Path, str, float, GridStability[MapKind]]


def _grids(subject: Subject, named: dict[Path, str]) -> Iterator[_Grid]:
    """Plan the regions that are mapped twice."""
    if not subject.settings.stability_mpx:
        return
    maps = {c.kind: PatchMaps(partial(_maps, subject.explainer(c)), c.geometry) for c in subject.main}
    for path, name in named.items():
        with open_slide(path, subject.settings.mpp) as slide:
            canvas, tissue = canvas_for(slide, wanted_mpp(subject.classifier)), tissue_mask(slide)
        most = round(subject.settings.stability_mpx * 1e6)
        for overlap in OVERLAPS:
            grid = GridStability(tissue, canvas, maps, subject.classifier.patch, overlap, most)
            yield path, name, overlap, grid


def _maps(explainer: Explainer, patches: NDArray[np.uint8]) -> NDArray[np.float32]:
    return explainer(patches).maps.numpy()


def _stability(
    subject: Subject, path: Path, name: str, overlap: float, grid: GridStability[MapKind], progress: Progress
) -> Iterator[Stability]:
    with open_slide(path, subject.settings.mpp) as slide:
        found = grid.measure(slide, subject.settings.workers, progress)
    for candidate in subject.main:
        n = candidate.network
        yield Stability(name, n.method, n.attribution, n.layer, overlap, found[candidate.kind])


# -------------------------------------------------------------------------------------------- sanity

_Check = tuple[int, "Callable[[Maps, Progress], Iterator[SanityStage]]"]


def _sanity_checks(subject: Subject, contest: Contest) -> Iterator[_Check]:
    """Prepare the randomisation of the classifier; yields how many images each check takes, and the check.

    A surrogate imitates the trained layers; it would have to be trained again for each random network.
    """
    if not subject.settings.sanity:
        return
    some = contest.of(slice(0, len(contest.images), -(-len(contest.images) // SANITY_PATCHES)))
    depth = 1 + len(stages(some.model, some.images[:1]))
    for candidate in subject.main:
        if not SMOOTHING[candidate.network.method].imitates:
            yield depth * (len(some.images) + some.scorer("none").cost), partial(_sanity, candidate, some)


def _sanity(
    candidate: Candidate, contest: Contest, explained: Maps, progress: Progress
) -> Iterator[SanityStage]:
    n, placement = candidate.network, explained[candidate.kind].placement
    scorer = contest.scorer("none")

    def explain(module: nn.Module) -> NDArray[np.float32]:
        network = Network(module, n.layer, n.method, n.attribution, n.baseline_image, n.precision)
        parts = [network.maps(network(*some).values) for some in contest.batches()]
        progress(len(contest.images))
        return torch.cat(parts).cpu().numpy()

    def score(maps: NDArray[np.float32]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        curves = scorer(maps, placement=placement, progress=progress)
        return curves.insertion_auc.numpy(), curves.deletion_auc.numpy()

    for step in cascade(contest.model, contest.images, explain, score, seed=contest.seed):
        yield SanityStage(n.method, n.attribution, n.layer, *step)


# -------------------------------------------------------------------------------------- localisation


def _localised(
    subject: Subject, path: Path, name: str, drawn: Annotations, maps: Path, *, progress: bool
) -> Iterator[Localised]:
    """Compare the slide's maps, and the classifier's own patch probabilities, with what is drawn on it."""
    for i, candidate in enumerate(subject.main):
        folder = maps / "-".join((candidate.network.method, candidate.network.attribution))
        result = _slide_map(subject, candidate, path, folder, progress=progress)
        heatmap = Heatmap.open(result.folder / ZARR)
        place, values = heatmap.info.placement, heatmap.read(0)
        height, width = values.shape
        lattice = width, height, place.x0, place.y0, place.fx, place.fy
        positive = drawn.mask(*lattice)
        with open_slide(path, subject.settings.mpp) as slide:
            tissue = tissue_mask(slide)
        x, y = place.centre(np.arange(width), np.arange(height)[:, None])
        inside = tissue.fractions(x - place.fx / 2, y - place.fy / 2, place.fx, place.fy) > 0.5
        if not positive[inside].any():
            log.warning("%s: none of its areas lies in tissue of %s", drawn.path, path.name)
        if i == 0:
            boxes, p = _tile_probabilities(result.folder / TILES, subject)
            scores = localise(patch_probability_map(boxes, p, *lattice), positive, inside)
            yield Localised(name, None, *scores)
        yield Localised(name, candidate.kind, *localise(values, positive, inside))


def _slide_map(subject: Subject, candidate: Candidate, path: Path, folder: Path, *, progress: bool) -> Result:
    """Make the map of a whole slide, or take the one that an evaluation with the same settings has left."""
    s, n = subject.settings, candidate.network
    settings = RunSettings(
        model=s.model,
        weights=s.weights,
        method=n.method,
        attribution=n.attribution,
        surrogate=s.surrogate if SMOOTHING[n.method].imitates else None,
        layer=n.layer,
        target=s.target,
        mpp=s.mpp,
        model_mpp=s.model_mpp,
        patch=s.patch,
        tissue_threshold=s.tissue_threshold,
        batch=s.batch,
        workers=s.workers,
        device=s.device,
        precision=s.precision,
    )
    explain = partial(
        explain_slide, path, folder, settings, explainer=subject.explainer(candidate), progress=progress
    )
    result = explain()
    return explain(overwrite=True) if result.differences else result


def _tile_probabilities(table: Path, subject: Subject) -> tuple[list[list[float]], list[float]]:
    """Read the boxes of a run's patches and the target's probabilities."""
    name = f"probability_{subject.classifier.class_names[subject.target]}"
    with table.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return [[float(row[key]) for key in "xywh"] for row in rows], [float(row[name]) for row in rows]


# -------------------------------------------------------------------------------------------- report


def _examples(subject: Subject, patches: Located, contest: Contest, outcome: Outcome) -> list[Example]:
    """Show the maps of the patches that the classifier is surest of."""
    p = contest.probabilities
    kinds: list[MapKind] = [candidate.kind for candidate in subject.main]
    return [
        Example(
            patches.patches[i],
            float(p[i]),
            {kind: outcome.explained[kind].maps[i].numpy() for kind in kinds},
        )
        for i in p.argsort(descending=True, stable=True)[:EXAMPLES].tolist()
    ]


def _facts(subject: Subject, named: dict[Path, str], contest: Contest) -> dict[str, Any]:
    c = subject.classifier
    return {
        "settings": subject.settings.to_json(),
        "model": {
            "uri": c.uri,
            "architecture": c.architecture,
            "sha256": c.sha256,
            "classes": list(c.class_names),
            "patch": c.patch,
            "mpp": c.mpp,
        },
        "target": c.class_names[subject.target],
        "slides": list(named.values()),
        "patches": len(contest.images),
        "pixels_per_step": contest.scorer("none").step,
        "total_stride": subject.total_stride,
        "layers": {candidate.network.layer: candidate.geometry.reduction for candidate in subject.compared},
        "layer_of_slide_maps": subject.main[0].network.layer,
        "device": str(subject.device),
        "versions": {"python": platform.python_version()} | {name: version(name) for name in _PACKAGES},
    }
