"""``wsi-saliency view``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from wsi_saliency.cli.options import Command, examples, options
from wsi_saliency.cli.terminal import INTERRUPTED, echo, speak
from wsi_saliency.cli.types import Number, Written
from wsi_saliency.settings import CacheSettings, whole
from wsi_saliency.urls import located

if TYPE_CHECKING:
    from pathlib import Path


@click.command(
    cls=Command,
    short_help="Look at maps over their slides in a browser.",
    epilog=examples("view saliency/", "view saliency/slide --slide moved/slide.svs"),
)
@click.argument("out", metavar="OUT", type=Written())
@click.option(
    "--slide",
    metavar="PATH|URL",
    help="Where the slide is, if it has moved since; for a single result.",
)
@click.option(
    "--port",
    type=Number(whole(0, 65535)),
    default=0,
    metavar="N",
    help="Port of the page on this machine; 0 is any that is free.  [default: 0]",
)
@click.option(
    "--open/--no-open", "opens", default=True, show_default=True, help="Open the page in a browser."
)
@options(CacheSettings, name="cache")
def view(out: Path, slide: str | None, port: int, cache: CacheSettings, *, opens: bool) -> None:
    """Look at results (OUT: a folder that run has written) in a browser, each map over its slide.

    The page is served by this program, to this machine only, until Ctrl-C. Nothing is written, and nothing is
    fetched from elsewhere but slides that a run had from URLs. The address has a secret part: whoever has it
    can look as long as this runs.
    """
    speak()
    import webbrowser
    from threading import Thread

    from wsi_saliency.viewer.server import Server
    from wsi_saliency.viewer.site import Site
    from wsi_saliency.workflows.project import find_results

    results = find_results(out)
    if slide is not None and len(results) > 1:
        raise click.UsageError(f"--slide is for a single result, and {out} has {len(results)}")
    with (
        Site(results, None if slide is None else located(slide), cache) as site,
        Server(site, port) as server,
    ):
        echo(f"{server.url}  (Ctrl-C ends it)")
        if opens:
            Thread(target=webbrowser.open, args=(server.url,), daemon=True).start()
        try:
            server.serve_forever()
        except KeyboardInterrupt as signal:
            if getattr(signal, "exit_code", INTERRUPTED) != INTERRUPTED:
                raise
            echo("Ended.", err=True)
