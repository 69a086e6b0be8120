"""What a worker process and its parent say to each other over their pipe."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import logging
    from pathlib import Path

    from wsi_saliency.heatmap.shelf import Shelf
    from wsi_saliency.settings import RunSettings
    from wsi_saliency.workflows.jobs import Job, Outcome


@dataclass(frozen=True)
class Order:
    """What a worker process is to do with each slide that it is given: all that `SlideWork` needs.

    The threads of the processor are shared with so many others that work ``side_by_side`` with it.
    """

    out: Path | Shelf
    settings: RunSettings
    overwrite: bool
    log_level: int
    side_by_side: int = 1


@dataclass(frozen=True)
class Started:
    """The process is there, and begins with its slide."""


@dataclass(frozen=True)
class Loading:
    """The classifier is being loaded."""


@dataclass(frozen=True)
class Loaded:
    """The classifier is there; so many devices of the kind asked for are."""

    devices: int


@dataclass(frozen=True)
class Begun:
    """The patches of a slide are counted, or what else it is taken in."""

    name: str
    count: int
    unit: str


@dataclass(frozen=True)
class Advanced:
    """So many more of them are done."""

    count: int


@dataclass(frozen=True)
class Logged:
    """A log record."""

    record: logging.LogRecord


@dataclass(frozen=True)
class Done:
    """What became of the slide."""

    outcome: Outcome


@dataclass(frozen=True)
class Again:
    """The process died while it also looked at another slide: nobody knows which of the two did it."""

    job: Job


@dataclass(frozen=True)
class Unable:
    """Why no slide can be done."""

    error: Exception


@dataclass(frozen=True)
class Looking:
    """The next slide is being looked at."""

    job: Job


@dataclass(frozen=True)
class Looked:
    """It has been, or cannot be."""

    job: Job


@dataclass(frozen=True)
class Lost:
    """The process or the machine that was at a slide is no more; why, and in many words."""

    reason: str
    trace: str


Message = (
    Started | Loading | Loaded | Begun | Advanced | Logged | Looking | Looked | Done | Again | Unable | Lost
)
"""From a worker process to its parent, and of a lost one."""


@dataclass(frozen=True)
class Ahead:
    """The slide that probably comes next; the other messages to a worker process are the jobs themselves."""

    job: Job
