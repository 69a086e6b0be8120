"""How little a map depends on where the grid of patches lies, at each overlap, and what overlap costs.

    cd benchmarks; SHARED=../../shared
    python stability.py $SHARED/slides/cmu-1-small-region.svs --model $SHARED/real/resnet18_colon.safetensors

Maps a part of the slide on two grids (`GridStability`), the second moved by half its stride and by each
``--move``, then the whole slide once at each overlap.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import click
from tqdm import tqdm

from wsi_saliency import EvaluationSettings, RunSettings, explain_slide, open_slide
from wsi_saliency.evaluation.stability import GridStability
from wsi_saliency.mapspec import MapSpec
from wsi_saliency.saliency.smoothing import SMOOTHING
from wsi_saliency.settings import ATTRIBUTIONS, METHODS
from wsi_saliency.slides.tissue import tissue_mask
from wsi_saliency.workflows.canvas import canvas_for, wanted_mpp
from wsi_saliency.workflows.evaluated import EvaluatedClassifier

UNTRAINED = [method for method in METHODS if not SMOOTHING[method].imitates]


class Grid(NamedTuple):
    """A column of the table: the second grid is moved by canvas pixels, None by half its stride."""

    overlap: float
    move: int | None

    def __str__(self) -> str:
        return f"{self.overlap:g}, {'half' if self.move is None else f'{self.move} px'}"


def correlations(
    evaluated: EvaluatedClassifier, slide: Path, most_pixels: int, at: Grid
) -> dict[MapSpec, float]:
    """Measure the grid stability of all maps."""
    patch = evaluated.classifier.patch
    with open_slide(slide) as opened:
        canvas, tissue = canvas_for(opened, wanted_mpp(evaluated.classifier)), tissue_mask(opened)
        grid = GridStability(
            tissue,
            canvas,
            evaluated.network.geometry,
            evaluated.patch_maps,
            patch,
            at.overlap,
            most_pixels,
            at.move,
        )
        with tqdm(total=grid.cost, desc=str(at), unit="map", disable=None) as bar:
            return grid.measure(opened, progress=bar.update)


def table(evaluated: EvaluatedClassifier, found: Mapping[Grid, Mapping[MapSpec, float]]) -> None:
    """Print a row for each map."""
    print(f"| layer | attribution | method | {' | '.join(map(str, found))} |")
    print("|---|---|---|" + "---|" * len(found))
    for spec in evaluated.network.maps:
        cells = " | ".join(f"{by_map[spec]:.2f}".replace("-", "−") for by_map in found.values())
        reduction = evaluated.network.geometry[spec].reduction
        print(f"| 1/{reduction} | {spec.attribution} | {spec.method} | {cells} |")


def cost(evaluated: EvaluatedClassifier, spec: MapSpec, slide: Path, overlaps: Sequence[float]) -> None:
    """Print the patches and seconds of a run at each overlap, and as multiples of those at the first."""
    spent = []
    for overlap in overlaps:
        settings = RunSettings(
            model=evaluated.settings.model,
            methods=(spec.method,),
            attributions=(spec.attribution,),
            layers=(spec.layer,),
            overlap=overlap,
        )
        with tempfile.TemporaryDirectory() as folder:
            explainer = evaluated.explainer_of([spec])
            record = explain_slide(slide, Path(folder) / "map", settings, explainer=explainer).record
        spent.append((record["patches"]["tissue"], record["seconds"]["total"]))
    print("\n| overlap | patches | | seconds | |\n|---|---|---|---|---|")
    for overlap, (patches, seconds) in zip(overlaps, spent, strict=True):
        times = f"× {patches / spent[0][0]:.1f} | {seconds:.0f} | × {seconds / spent[0][1]:.1f}"
        print(f"| {overlap:g} | {patches} | {times} |")


@click.command()
@click.argument("slide", type=click.Path(exists=True, path_type=Path))
@click.option("--model", required=True)
@click.option("--target")
@click.option("--mpx", default=2.0, show_default=True, help="Megapixels that are mapped twice.")
@click.option("--overlap", "overlaps", multiple=True, type=float, default=(0.25, 0.5, 0.75))
@click.option("--move", "moves", multiple=True, type=int, help="Canvas pixels, beside half a stride.")
@click.option("--method", "methods", multiple=True, default=UNTRAINED)
@click.option("--attribution", "attributions", multiple=True, default=ATTRIBUTIONS[:3])
@click.option("--layer", "layers", multiple=True, default=("8", "16"))
@click.option("--cost/--no-cost", "costs", default=True, help="Map the whole slide at each overlap too.")
def main(
    slide: Path,
    model: str,
    target: str | None,
    mpx: float,
    overlaps: tuple[float, ...],
    moves: tuple[int, ...],
    costs: bool,
    **compared: tuple[str, ...],
) -> None:
    """Print the tables."""
    evaluated = EvaluatedClassifier.of(EvaluationSettings(model=model, target=target, **compared))
    grids = [Grid(overlap, move) for overlap in overlaps for move in (None, *moves)]
    table(evaluated, {at: correlations(evaluated, slide, round(mpx * 1e6), at) for at in grids})
    if costs:
        cost(evaluated, evaluated.network.maps[0], slide, overlaps)


if __name__ == "__main__":
    main()
