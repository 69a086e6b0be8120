"""Slides in this process: for a single one, there is nothing to isolate it from."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from wsi_saliency.heatmap.shelf import Shelf
    from wsi_saliency.settings import RunSettings
    from wsi_saliency.workflows.jobs import Job, Outcome


@dataclass
class DirectEngine:
    """Runs slides one after another in this process.

    Parameters
    ----------
    out
        The output folder, or the shelf where results stand.
    overwrite, wait, progress
        As `wsi_saliency.workflows.explain.explain_slide` takes them.
    """

    out: Path | Shelf
    overwrite: bool = False
    wait: bool = True
    progress: bool = False

    def __enter__(self) -> DirectEngine:
        return self

    def __exit__(self, *_: object) -> None:
        """Leave nothing: what fails tidies up after itself."""

    def run(self, jobs: Iterable[Job], settings: RunSettings) -> Iterator[Outcome]:
        """Run slides, as `Engine` says; of several devices, on the first."""
        from wsi_saliency.workflows.batch import SlideWork  # which imports torch

        settings = replace(settings, device=settings.device.split(",")[0].strip())
        yield from map(SlideWork(self.out, settings, self.overwrite, self.wait, self.progress), jobs)
