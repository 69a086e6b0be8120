"""``wsi-saliency evaluate``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from wsi_saliency.cli.options import Command, examples, options, out_option, quiet_option, slides_argument
from wsi_saliency.cli.terminal import echo, speak
from wsi_saliency.settings import EvaluationSettings

if TYPE_CHECKING:
    from pathlib import Path


@click.command(
    cls=Command,
    short_help="Measure which maps explain the classifier.",
    epilog=examples(
        "evaluate slide.svs --model demo --attribution gradient --layer 8 --patches 20",
        "evaluate slides/ --predicted-positive --annotations annotations/ --sanity",
    ),
)
@slides_argument
@out_option("FOLDER", "evaluation", "Output folder; look at its index.html.")
@click.option("--overwrite", is_flag=True, help="Replace an evaluation that is there.")
@quiet_option
@options(EvaluationSettings)
def evaluate(
    slides: tuple[str, ...], out: Path, settings: EvaluationSettings, *, overwrite: bool, quiet: bool
) -> None:
    """Say which maps of SLIDEs explain the classifier: faithful, smooth, stable, in the right place.

    Patches are sampled from the tissue and explained by every method × attribution × layer; pixels are then
    inserted and deleted in the order of each map. Maps that know nothing of the classifier are the controls.
    """
    speak(quiet=quiet)
    from wsi_saliency.report.findings import findings
    from wsi_saliency.workflows.discovery import find_paths
    from wsi_saliency.workflows.evaluate import evaluate_slides

    paths = find_paths(slides)
    evaluation = evaluate_slides(paths, out, settings, overwrite=overwrite, progress=not quiet)
    if not quiet:
        for sentence in findings(evaluation):
            echo(f"- {sentence}")
        echo(f"→ {out / 'index.html'}")
