"""``wsi-saliency train-surrogate``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from wsi_saliency.cli.options import Command, examples, options, out_option, quiet_option, slides_argument
from wsi_saliency.cli.terminal import echo_table, interrupted, speak
from wsi_saliency.settings import TrainingSettings

if TYPE_CHECKING:
    from pathlib import Path


@click.command(
    "train-surrogate",
    cls=Command,
    short_help="Train what --method surrogate needs.",
    epilog=examples(
        "train-surrogate slides/ --balance metastasis",
        "train-surrogate slide.svs --model timm:resnet18 --weights weights.safetensors",
    ),
)
@slides_argument
@out_option(
    "FILE",
    "surrogate.safetensors",
    "File to write. FILE.checkpoint beside it lets an interrupted training continue.",
)
@click.option("--overwrite", is_flag=True, help="Replace a surrogate that is there, when the new one is.")
@quiet_option
@options(TrainingSettings)
def train_surrogate(
    slides: tuple[str, ...], out: Path, settings: TrainingSettings, *, overwrite: bool, quiet: bool
) -> None:
    """Train the surrogate of a classifier, for run --method surrogate, on tissue of SLIDEs.

    Each strided convolution but the first gets a stand-in that learns its answers and looks at all pixels
    alike. Ends with how well predictions and layers are kept on patches held out.
    """
    speak(quiet=quiet)
    from wsi_saliency.workflows.discovery import find_paths
    from wsi_saliency.workflows.train import checkpoint_of, report, train_surrogate_on_slides

    paths = find_paths(slides)
    try:
        surrogate = train_surrogate_on_slides(paths, out, settings, overwrite=overwrite, progress=not quiet)
    except KeyboardInterrupt as e:
        if checkpoint_of(out).exists():
            raise interrupted(e, f"the same command continues from {checkpoint_of(out)}") from None
        raise
    if not quiet:
        echo_table([*report(surrogate), ("written", str(out))])
