"""What engines have in common whose slides run in other processes."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import KW_ONLY, dataclass, field
from typing import TYPE_CHECKING

from wsi_saliency.engines.bars import NoBars
from wsi_saliency.engines.console import Console
from wsi_saliency.engines.worker import slide_work
from wsi_saliency.errors import NoRoomError, OutputError
from wsi_saliency.files import folders_above, writing
from wsi_saliency.heatmap.shelves import shelved
from wsi_saliency.workflows.jobs import Outcome

if TYPE_CHECKING:
    from pathlib import Path

    from wsi_saliency.engines.bars import Bars
    from wsi_saliency.engines.worker import MakeWork
    from wsi_saliency.heatmap.shelf import Shelf
    from wsi_saliency.workflows.jobs import Job


@dataclass
class ProcessEngine:
    """How slides are run, and what is known meanwhile; whoever inherits says in which processes.

    Parameters
    ----------
    out
        The output folder, or the shelf where results stand.
    overwrite
        Replace complete results.
    timeout
        Seconds that a slide may take; None: as long as it takes.
    bars
        Shows how far it is.
    side_by_side
        How many slides are done at a time on each device.
    make_work
        Makes, in the worker, what does a slide; it is found by its name there.
    """

    out: Path | Shelf
    _: KW_ONLY
    overwrite: bool = False
    timeout: float | None = None
    bars: Bars = field(default_factory=NoBars)
    side_by_side: int = 1
    make_work: MakeWork = slide_work
    _proven: bool = field(default=False, init=False)  # the classifier could be loaded
    _folders: ExitStack = field(default_factory=ExitStack, init=False)  # those still empty at the end go

    def __post_init__(self) -> None:
        self._console = Console(self.bars)

    def _without_folder(self, job: Job) -> Outcome | None:
        """Make the folders in which a slide's result is to be; return the outcome if that cannot be done."""
        folder = shelved(self.out).folder / job.name
        try:
            with writing(folder):
                self._folders.enter_context(folders_above(folder))
        except OutputError as error:
            return Outcome(job, failure=str(error), no_room=isinstance(error, NoRoomError))
        return None
