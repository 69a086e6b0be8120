"""``wsi-saliency render``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from wsi_saliency.cli.options import Command, examples, options, out_option
from wsi_saliency.cli.terminal import echo, speak
from wsi_saliency.cli.types import Box, Number, Written
from wsi_saliency.settings import Bounds, CacheSettings, whole

if TYPE_CHECKING:
    from pathlib import Path


@click.command(
    cls=Command,
    short_help="Draw a figure of a map for a paper.",
    epilog=examples(
        "render saliency/slide -o figure.pdf",
        "render saliency/slide --region 12000,8000,4000,3000 --beside -o figure.png",
        "render saliency/slide --region 12000,8000,4000,3000 --scale 1 -o figure.png",
    ),
)
@click.argument("folder", metavar="RESULT", type=Written())
@out_option("FILE", "figure.pdf", "File to write: .pdf, .svg or .png.")
@click.option(
    "--region",
    type=Box(),
    metavar="X,Y,W,H",
    help="What is shown, pixels of the slide's finest level.  [default: the whole slide]",
)
@click.option(
    "--map", "map_name", metavar="NAME", help="Which map, as run.json names it.  [default: the first]"
)
@click.option("--target", metavar="NAME", help="Which class.  [default: the first]")
@click.option(
    "--slide",
    metavar="FILE|URL",
    help="The slide.  [default: where the run found it]",
)
@click.option(
    "--width",
    "width_mm",
    type=Number(Bounds(10, 1000)),
    metavar="MM",
    help="Width in print; 85 mm is a column of most journals.  [default: 85]",
)
@click.option(
    "--scale",
    type=Number(Bounds(0, open=True)),
    metavar="UM",
    help="µm of tissue in each pixel of slide and map: 0.5 is what a 20× objective shows. The width follows "
    "from it and --dpi.  [default: what --width gives]",
)
@click.option(
    "--dpi",
    type=Number(whole(50, 2400)),
    default=300,
    show_default=True,
    metavar="N",
    help="Pixels per inch of slide and map.",
)
@click.option("--beside", is_flag=True, help="Show the slide alone beside it.")
@options(CacheSettings, name="cache")
def render(folder: Path, out: Path, **how: Any) -> None:
    """Draw a region of a RESULT's slide with its map, scale bar and colour bar, for a paper.

    RESULT is the folder that run has made of a slide.
    """
    speak()
    from wsi_saliency.workflows.render import render as draw

    draw(folder, out, **how)
    echo(f"→ {out}")
