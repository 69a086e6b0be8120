"""What is to be done with a slide, and what became of it; free of torch."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from wsi_saliency.urls import shown

if TYPE_CHECKING:
    from pathlib import Path

    from wsi_saliency.heatmap.result import Result
    from wsi_saliency.settings import RunSettings
    from wsi_saliency.slides.store import Facts
    from wsi_saliency.urls import Location


@dataclass(frozen=True)
class Job:
    """A slide and the folder, below the output folder, where its results go.

    Parameters
    ----------
    slide, name
        The slide, and the folder.
    mpp, targets
        Settings of this slide; None: those of all slides.
    annotations
        What was drawn on the slide, if a list of slides says so.
    facts
        What a listing of a store has said of the slide, if it comes from one.
    """

    slide: Location
    name: Path
    mpp: float | None = None
    targets: tuple[str, ...] | None = None
    annotations: Location | None = None
    facts: Facts | None = None

    @property
    def shown(self) -> str:
        """The slide as messages and tables name it."""
        return shown(self.slide)

    def settings(self, common: RunSettings) -> RunSettings:
        """Return what is computed for this slide."""
        targets = common.targets if self.targets is None else self.targets
        return replace(common, mpp=self.mpp or common.mpp, targets=targets)


@dataclass(frozen=True)
class Outcome:
    """What became of a job.

    Parameters
    ----------
    job
        The slide, and where its results were to go.
    result
        What was written or kept; None if the slide failed.
    failure
        Why it failed, in one line that names the slide; None if it did not.
    trace
        The traceback of the failure, where there is one.
    unexpected
        Whether the failure is none that the program foresees: the traceback is what explains it.
    no_room
        Whether the failure is that nothing can be written where results go: other slides would fail too.
    busy
        Whether nothing was tried, because another run works on the result.
    lost
        Whether the process or the machine that was at it is no more: it may be done by another.
    """

    job: Job
    result: Result | None = None
    failure: str | None = None
    trace: str | None = None
    unexpected: bool = False
    no_room: bool = False
    busy: bool = False
    lost: bool = False
