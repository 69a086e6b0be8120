"""``wsi-saliency check-model``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from wsi_saliency.cli.options import Command, examples, options, out_option
from wsi_saliency.cli.terminal import echo_table, speak
from wsi_saliency.settings import ModelCheckSettings

if TYPE_CHECKING:
    from pathlib import Path


@click.command(
    "check-model",
    cls=Command,
    short_help="Say what a classifier is, and whether to trust it.",
    epilog=examples(
        "check-model demo",
        "check-model timm:resnet18 --weights weights.safetensors --json",
        "check-model demo --patches pictures/ -o sheet.png",
    ),
)
@click.option("--json", "as_json", is_flag=True, help="Print the same facts as one JSON object.")
@out_option("FILE", None, "Write a picture of the patches by score, .png.")
@options(ModelCheckSettings, argument="model")
def check_model(settings: ModelCheckSettings, out: Path | None, *, as_json: bool) -> None:
    """Say what a classifier is, and whether it can be trusted with maps.

    Architecture, input, mpp, classes, what it answers to patches of one colour, its layers, its hash; on
    patches of yours also scores, accuracy, speed, and whether coarser number formats give the same.
    """
    speak()
    from wsi_saliency.workflows import facts
    from wsi_saliency.workflows.check_model import check_model

    found = check_model(settings, out)
    if as_json:
        click.echo(facts.json_of(found))  # ASCII, which cannot steer the terminal
    else:
        echo_table(facts.lines_of(found))
