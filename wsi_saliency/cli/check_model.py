"""``wsi-saliency check-model``."""

from __future__ import annotations

import click

from wsi_saliency.cli.options import Command, examples, options
from wsi_saliency.cli.terminal import echo_table
from wsi_saliency.settings import ModelSettings


@click.command(
    "check-model",
    cls=Command,
    epilog=examples("check-model demo", "check-model timm:resnet18 --weights weights.safetensors"),
)
@options(ModelSettings, argument="model")
def check_model(settings: ModelSettings) -> None:
    """Say what a classifier is: architecture, input, mpp, classes, strided convolutions, layers, hash."""
    from wsi_saliency.workflows.describe_model import describe_model

    echo_table(describe_model(settings))
