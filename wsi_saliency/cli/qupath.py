"""``wsi-saliency qupath``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from wsi_saliency.cli.options import Command, examples
from wsi_saliency.cli.terminal import echo, echo_table, speak
from wsi_saliency.cli.types import Output, Written

if TYPE_CHECKING:
    from pathlib import Path


@click.command(
    cls=Command,
    short_help="Put slides and their maps into a QuPath project.",
    epilog=examples("qupath saliency/ -p project", "qupath maps/a maps/b -p project --no-tiles"),
)
@click.argument("outs", nargs=-1, required=True, metavar="OUT...", type=Written())
@click.option(
    "-p",
    "--project",
    type=Output(),
    required=True,
    metavar="FOLDER",
    help="Folder of the QuPath project; it is made if it is not there.",
)
@click.option(
    "--tiles/--no-tiles",
    default=True,
    show_default=True,
    help="Put the patches with their measurements into the project; hotspots are, where there are any.",
)
def qupath(outs: tuple[Path, ...], project: Path, *, tiles: bool) -> None:
    """Put the slides of results (folders that run has written) into a QuPath project, with their maps.

    This writes two scripts into the project's folder. QuPath itself does the rest, because only QuPath can
    write its project file: drag open-all.groovy onto QuPath's window and choose Run > Run. It makes the
    project, or extends it, with slides, hotspots and tiles. Then open a slide and choose overlay under
    Automate > Project scripts. Works with QuPath 0.5 and newer.
    """
    speak()
    from wsi_saliency.heatmap.qupath import OPEN_ALL, PROJECT_OVERLAY
    from wsi_saliency.workflows.project import extend_project

    results = extend_project(project, outs, tiles=tiles)
    echo(f"{project}: {len(results)} {'slides' if len(results) > 1 else 'slide'}")
    echo_table(
        [
            ("in QuPath", f"drag {project / OPEN_ALL} onto the window, then Run > Run"),
            ("for a map", f"open a slide, then Automate > Project scripts ({PROJECT_OVERLAY})"),
        ]
    )
