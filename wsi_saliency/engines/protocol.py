"""The seam to whatever runs slides: it is given jobs and settings, never a network."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from types import TracebackType

    from wsi_saliency.settings import RunSettings
    from wsi_saliency.workflows.jobs import Job, Outcome


class Engine(Protocol):
    """Runs slides; a context, at whose end nothing runs any more and nothing unfinished is left."""

    def __enter__(self) -> Engine: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def run(self, jobs: Iterable[Job], settings: RunSettings) -> Iterator[Outcome]:
        """Run slides, and yield the outcome of each when it is there.

        May be called several times; what was loaded stays.

        Raises
        ------
        ModelError, SettingsError
            If the classifier cannot be had; then no slide can be done.
        """
        ...
