"""Whether maps find the tumour, and better than the classifier's own patch probabilities.

    cd benchmarks; REAL=../../shared/real
    python localisation.py $REAL/patches/test --model $REAL/resnet18_colon.safetensors --against normal -o out

Labelled patches are laid out as slides (`make_mosaic`); each is mapped in every way, and the maps are scored
against the truth. Maps stay in the folder, so a run in parts, by ``--layer`` and ``--attribution``, adds up.

The truth is that of whole patches: every lumen in a tumour patch counts as tumour. So maps are judged twice,
cell by cell, where the patch probabilities have it easy, and by their mean over each patch. Intervals are
bootstraps over patches: positive ones and others are drawn again, each by themselves, for all maps alike. The
area under the ROC curve is the mean of those between two patches, so no draw has to be scored anew.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import NamedTuple

import click
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "sample_data")]

from make_mosaic import MARGIN, Mosaic, make_mosaic, patch_files, write_mosaic  # noqa: E402

from wsi_saliency import EvaluationSettings, RunSettings, explain_slide, open_slide  # noqa: E402
from wsi_saliency.evaluation.annotation_files import read_annotations  # noqa: E402
from wsi_saliency.evaluation.annotations import Annotations  # noqa: E402
from wsi_saliency.evaluation.localisation import patch_probability_map, pixel_scores  # noqa: E402
from wsi_saliency.evaluation.maps import kind_of  # noqa: E402
from wsi_saliency.evaluation.statistics import CONFIDENCE, RESAMPLES  # noqa: E402
from wsi_saliency.heatmap.ome_zarr import Heatmap  # noqa: E402
from wsi_saliency.heatmap.result import Result  # noqa: E402
from wsi_saliency.mapspec import PLAIN, MapSpec  # noqa: E402
from wsi_saliency.saliency.smoothing import SMOOTHING  # noqa: E402
from wsi_saliency.settings import ATTRIBUTIONS, METHODS  # noqa: E402
from wsi_saliency.slides.tissue import tissue_mask  # noqa: E402
from wsi_saliency.workflows.canvas import wanted_mpp  # noqa: E402
from wsi_saliency.workflows.evaluated import EvaluatedClassifier  # noqa: E402

UNTRAINED = [method for method in METHODS if not SMOOTHING[method].imitates]
OTHERS = "all others"

Values = NDArray[np.float32]
Mask = NDArray[np.bool_]
Numbers = NDArray[np.intp]
Floats = NDArray[np.float64]


class Kind(NamedTuple):
    """A row of the tables; ``layer`` is its reduction."""

    layer: str
    attribution: str
    method: str

    @classmethod
    def of(cls, evaluated: EvaluatedClassifier, spec: MapSpec) -> Kind:
        """Return the row of a map."""
        reduction = evaluated.network.geometry[spec].reduction
        return cls(f"1/{reduction}", spec.attribution, spec.method)

    @property
    def plain(self) -> Kind:
        """The patch probabilities on this layer's lattice."""
        return Kind(self.layer, "patch probabilities", "–")


class Question(NamedTuple):
    """Which cells of a map are judged, and whether one by one or by their mean over each patch."""

    against: str
    unit: str


# -------------------------------------------------------------------------------------------- scoring


@dataclass(frozen=True)
class Scores:
    """How a map ranks positive patches over others.

    ``won``, ``weight``: (positive, others) area under the ROC curve between two patches, and how many pairs
    of their cells there are.
    """

    average_precision: float
    won: Floats
    weight: Floats

    @classmethod
    def of(cls, values: Values, positive: Mask, patch: Numbers) -> Scores:
        """Score cells of a map, (n,) each: value, class, and number of the patch."""
        within, outside = (
            [values[patch == i] for i in np.unique(patch[some])] for some in (positive, ~positive)
        )
        won = np.array([[_won(a, b) for b in outside] for a in within])
        weight = np.outer([len(a) for a in within], [len(b) for b in outside])
        return cls(pixel_scores(values, positive)[1], won, weight.astype(np.float64))

    @property
    def auroc(self) -> float:
        """Area under the ROC curve of all cells."""
        return float((self.won * self.weight).sum() / self.weight.sum())

    def drawn(self, seed: int) -> Floats:
        """Area for each draw of patches, (RESAMPLES,)."""
        rng = np.random.default_rng(seed)
        within, outside = (rng.multinomial(n, np.full(n, 1 / n), size=RESAMPLES) for n in self.won.shape)
        won, pairs = (((within @ of) * outside).sum(1) for of in (self.won * self.weight, self.weight))
        return np.asarray(won / pairs)


def _won(a: Values, b: Values) -> float:
    return pixel_scores(np.concatenate([a, b]), np.arange(len(a) + len(b)) < len(a))[0]


def patch_means(values: Values, positive: Mask, patch: Numbers) -> tuple[Values, Mask, Numbers]:
    """Mean of a map over each patch, with its class and number."""
    found, first, inverse = np.unique(patch, return_index=True, return_inverse=True)
    means = np.bincount(inverse, values) / np.bincount(inverse)
    return means.astype(np.float32), positive[first], found


@dataclass(frozen=True)
class Case:
    """A mosaic on a slide; ``positive`` is the class to be found, ``against`` those that it is told from."""

    slide: Path
    mosaic: Mosaic
    positive: str
    against: tuple[str, ...]

    @cached_property
    def truth(self) -> Annotations:
        """Read the outlines beside the slide."""
        return read_annotations(self.slide.with_suffix(".geojson"))

    def scores(self, heatmap: Heatmap, values: Values) -> Iterator[tuple[Question, Scores]]:
        """Score values (H, W) on a heatmap's lattice, larger meaning positive."""
        patch, on = self.patches(heatmap), lattice(heatmap)
        positive = self.truth.only([self.positive]).mask(*on)
        for name in self.against:
            others = self.truth if name == OTHERS else self.truth.only([name])
            judged = (patch >= 0) & (positive | others.mask(*on))
            cells = values[judged], positive[judged], patch[judged]
            yield Question(name, "cells"), Scores.of(*cells)
            yield Question(name, "patches"), Scores.of(*patch_means(*cells))

    def patches(self, heatmap: Heatmap) -> Numbers:
        """Return the number of the patch that each cell of a heatmap lies in, (H, W); −1 outside tissue."""
        place, (width, height) = heatmap.info.placement, lattice(heatmap)[:2]
        x, y = place.centre(np.arange(width), np.arange(height)[:, None])
        with open_slide(self.slide) as slide:
            shares = tissue_mask(slide).fractions(x - place.fx / 2, y - place.fy / 2, place.fx, place.fy)
        rows, columns = self.mosaic.labels.shape
        column, row = ((at - MARGIN) // self.mosaic.side for at in (x, y))
        inside = (column >= 0) & (column < columns) & (row >= 0) & (row < rows) & (shares > 0.5)
        return np.where(inside, row * columns + column, -1).astype(np.intp)


# -------------------------------------------------------------------------------------------- mapping

Found = dict[tuple[Question, Kind], list[Scores]]
"""Scores on each mosaic."""


def measured(several: Sequence[EvaluatedClassifier], cases: Sequence[Case], folder: Path) -> Found:
    """Map and score; for each layer first the patch probabilities on its lattice."""
    found: Found = defaultdict(list)
    pairs = [(evaluated, spec) for evaluated in several for spec in evaluated.network.maps]
    for case in cases:
        layers = set()
        for evaluated, spec in tqdm(pairs, desc=case.slide.name, unit="map", disable=None):
            kind = Kind.of(evaluated, spec)
            label = kind_of(evaluated.network, spec).label
            result = slide_map(evaluated, spec, case.slide, folder / case.slide.stem / label)
            heatmap = result.heatmap()
            if kind.layer not in layers:
                assert kind.method == PLAIN, "other methods may change the probabilities"
                layers.add(kind.layer)
                for question, scores in case.scores(heatmap, probability_map(result, heatmap, case.positive)):
                    found[question, kind.plain].append(scores)
            for question, scores in case.scores(heatmap, heatmap.read(0)):
                found[question, kind].append(scores)
    return found


def slide_map(evaluated: EvaluatedClassifier, spec: MapSpec, slide: Path, folder: Path) -> Result:
    """Map a slide as `run` does, or take the map that is there."""
    settings = RunSettings(
        model=evaluated.settings.model,
        methods=(spec.method,),
        attributions=(spec.attribution,),
        layers=(spec.layer,),
    )
    explain = partial(explain_slide, slide, folder, settings, explainer=evaluated.explainer_of([spec]))
    result = explain()
    return explain(overwrite=True) if result.differences else result


def probability_map(result: Result, heatmap: Heatmap, positive: str) -> Values:
    """Lay the patch probabilities of a run over its heatmap's lattice."""
    return patch_probability_map(*result.tile_probabilities(positive), *lattice(heatmap))


def lattice(heatmap: Heatmap) -> tuple[int, int, float, float, float, float]:
    """Size and placement of a heatmap's cells."""
    place, (height, width) = heatmap.info.placement, heatmap.read(0).shape
    return width, height, place.x0, place.y0, place.fx, place.fy


# --------------------------------------------------------------------------------------------- tables


def table(found: Found, against: str) -> None:
    """Print how well each map tells the positive class from others."""
    heads = ["layer", "attribution", "method"]
    heads += ["AUROC", "− probabilities", "average precision", "AUROC of patches' means", "− probabilities"]
    print(f"\nAgainst {against}:\n\n| {' | '.join(heads)} |\n|{'---|' * len(heads)}")
    cells, patches = Question(against, "cells"), Question(against, "patches")
    for kind in dict.fromkeys(kind for _, kind in found):
        fine, coarse = (beside(found[q, kind], found[q, kind.plain]) for q in (cells, patches))
        precision = np.mean([scores.average_precision for scores in found[cells, kind]])
        print(f"| {' | '.join([*kind, *fine, f'{precision:.3f}', *coarse])} |")


def beside(scores: Sequence[Scores], plain: Sequence[Scores]) -> tuple[str, str]:
    """Mean area over the mosaics, and by how much it exceeds that of the probabilities, with its interval."""
    area, other = (float(np.mean([one.auroc for one in some])) for some in (scores, plain))
    if scores is plain:
        return f"{area:.3f}", "–"
    pairs = enumerate(zip(scores, plain, strict=True))
    draws = np.mean([a.drawn(seed) - b.drawn(seed) for seed, (a, b) in pairs], axis=0)
    low, high = np.quantile(draws, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return f"{area:.3f}", f"{signed(area - other)} [{signed(low)}, {signed(high)}]"


def signed(value: float) -> str:
    """Format a difference."""
    return f"{value:+.3f}".replace("-", "−")


def laid_out(
    patches: Path, folder: Path, columns: int, seed: int, mpp: float, names: tuple[str, ...]
) -> Case:
    """Write a mosaic into a folder; ``names``: the class to be found, and those that it is told from."""
    mosaic = make_mosaic(patch_files(patches), columns, columns, seed, names[0])
    slide = folder / f"mosaic-{columns}-{seed}.svs"
    if not slide.exists():
        folder.mkdir(parents=True, exist_ok=True)
        write_mosaic(slide, mosaic, mpp, quality=95)
    return Case(slide, mosaic, names[0], (OTHERS, *names[1:]))


@click.command()
@click.argument("patches", type=click.Path(exists=True, path_type=Path))
@click.option("--model", required=True, help="Classifier that has the positive class.")
@click.option("--positive", default="tumour", show_default=True, help="Class to be found.")
@click.option("--against", multiple=True, help="Class that it is told from, beside all others together.")
@click.option("--columns", default=8, show_default=True, help="Patches along each side of a mosaic.")
@click.option("--seed", "seeds", multiple=True, type=int, default=(0, 1, 2, 3), help="Of each mosaic.")
@click.option("--method", "methods", multiple=True, default=UNTRAINED)
@click.option("--attribution", "attributions", multiple=True, default=ATTRIBUTIONS[:3])
@click.option("--layer", "layers", multiple=True, default=("8", "16"))
@click.option(
    "-o", "--out", type=click.Path(path_type=Path), required=True, help="Folder for slides and maps."
)
def main(
    patches: Path,
    model: str,
    positive: str,
    against: tuple[str, ...],
    columns: int,
    seeds: tuple[int, ...],
    out: Path,
    **compared: tuple[str, ...],
) -> None:
    """Lay out, map, score, and print the tables."""
    settings = EvaluationSettings(model=model, target=positive, **compared)
    overview = replace(settings, methods=(PLAIN,), attributions=("gradcam",), layers=("last",))
    several = [EvaluatedClassifier.of(each) for each in (settings, overview)]
    mpp = wanted_mpp(several[0].classifier)
    cases = [laid_out(patches, out, columns, seed, mpp, (positive, *against)) for seed in seeds]
    found = measured(several, cases, out)
    for name in (OTHERS, *against):
        table(found, name)


if __name__ == "__main__":
    main()
