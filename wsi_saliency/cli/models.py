"""``wsi-saliency models``."""

from __future__ import annotations

import click

from wsi_saliency.cli.options import Command, examples
from wsi_saliency.cli.terminal import echo_table


@click.command(
    cls=Command,
    short_help="List the classifiers that there are.",
    epilog=examples("models", "check-model hf-hub:ORG/NAME"),
)
def models() -> None:
    """List where classifiers come from, and which are downloaded; needs no network."""
    from wsi_saliency.models.listing import listed_models

    echo_table(listed_models())
