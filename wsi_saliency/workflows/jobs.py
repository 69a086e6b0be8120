"""What is to be done with a slide, and what became of it; free of torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from wsi_saliency.heatmap.result import Result


@dataclass(frozen=True)
class Job:
    """A slide and the folder, below the output folder, where its results go."""

    slide: Path
    name: Path


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
    """

    job: Job
    result: Result | None = None
    failure: str | None = None
    trace: str | None = None
    unexpected: bool = False
    no_room: bool = False
    busy: bool = False
