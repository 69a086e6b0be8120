"""``wsi-saliency inspect``."""

from __future__ import annotations

import click

from wsi_saliency.cli.options import Command, examples, options
from wsi_saliency.cli.terminal import echo_table
from wsi_saliency.settings import InspectSettings


@click.command(
    cls=Command,
    short_help="Say what a slide is, and what a run would read.",
    epilog=examples("inspect slide.svs --model demo"),
)
@click.argument("slide")
@options(InspectSettings)
def inspect(slide: str, settings: InspectSettings) -> None:
    """Say what a SLIDE is: format, size, levels, mpp and where it came from, tissue, patches of a run."""
    from wsi_saliency.workflows.describe_slide import describe_slide

    echo_table(describe_slide(slide, settings))
