"""Results that are there already, and stay: found without torch, in milliseconds each."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

from wsi_saliency.errors import OutputError, SlideError
from wsi_saliency.heatmap.differences import differences
from wsi_saliency.models.hashes import weights_hash
from wsi_saliency.urls import is_url
from wsi_saliency.workflows.jobs import Outcome

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from wsi_saliency.heatmap.result import Result
    from wsi_saliency.heatmap.shelf import Shelf
    from wsi_saliency.settings import RunSettings
    from wsi_saliency.workflows.jobs import Job


@dataclass
class KeptResults:
    """The complete results of a shelf, compared with what is asked for now.

    Parameters
    ----------
    shelf, settings
        Where results stand, and what is computed.
    """

    shelf: Shelf
    settings: RunSettings

    def outcomes(self, jobs: Sequence[Job]) -> Iterator[Outcome | None]:
        """Yield the outcome of each slide whose complete result stays as it is; None if there is work to do.

        Raises
        ------
        OutputError
            If it cannot be found out what is there.
        """
        there = self.shelf.results(job.name for job in jobs)
        return map(self._outcome, jobs, there)

    def outcome(self, job: Job) -> Outcome | None:
        """Return the outcome of one slide."""
        return next(self.outcomes([job]))

    def _outcome(self, job: Job, result: Result | None) -> Outcome | None:
        if result is None:
            return None
        settings = job.settings(self.settings)
        try:
            unlike = differences(result, job.slide, settings, self._hashes, job.facts)
            done = bool(unlike) or (result.has(settings) and not result.lacks_exports(settings))
        except (OutputError, SlideError, AttributeError, KeyError, TypeError, ValueError):
            return None  # a damaged record, or no slide; whoever runs it says so
        if not (done and (is_url(job.slide) or job.slide.exists())):
            return None
        return Outcome(job, replace(result, kept=True, differences=unlike))

    @cached_property
    def _hashes(self) -> dict[str, str | None] | None:
        """Hash of the weights, if they are a file that is there; else results are compared by settings."""
        known = weights_hash(self.settings.model, self.settings.weights)
        return None if known is None else {"sha256": known}
