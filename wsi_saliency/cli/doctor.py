"""``wsi-saliency doctor``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from wsi_saliency.cli.options import Command, examples, out_option
from wsi_saliency.cli.terminal import SOME_FAILED, echo

if TYPE_CHECKING:
    from pathlib import Path


@click.command(
    cls=Command,
    short_help="Say whether the program can work here.",
    epilog=examples("doctor", "doctor -o /data/maps"),
)
@out_option("FOLDER", "saliency", "Where results would go.")
def doctor(out: Path) -> None:
    """Say whether the program can work here: OpenSlide, torch, GPU, memory, disk, cache; and what to do."""
    from wsi_saliency.workflows.doctor import examine

    faults = 0
    for finding in examine(out):
        mark = {"ok": "ok", "note": "note", "fault": "FAULT"}[finding.verdict]
        echo(f"{mark:<7}{finding.name:<11}{finding.text}")
        if finding.advice:
            echo(f"{'':<18}→ {finding.advice}")
        faults += finding.verdict == "fault"
    if faults:
        raise click.exceptions.Exit(SOME_FAILED)
