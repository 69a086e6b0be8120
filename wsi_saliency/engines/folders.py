"""A run over many slides: what is there already is kept, what others work on comes last, failures are logged.

Nothing here imports torch: where all results are there, a run over them is done in milliseconds each.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from itertools import repeat
from pathlib import Path
from typing import TYPE_CHECKING

from wsi_saliency.engines.bars import NoBars, TerminalBars
from wsi_saliency.engines.direct import DirectEngine
from wsi_saliency.engines.kept import KeptResults
from wsi_saliency.engines.local import LocalEngine
from wsi_saliency.engines.ray import RayEngine
from wsi_saliency.engines.summary import Summary
from wsi_saliency.errors import NoRoomError, OutputError
from wsi_saliency.heatmap.shelves import shelved
from wsi_saliency.messages import storable
from wsi_saliency.report.slides import FAILED, SUMMARY, SlideRow
from wsi_saliency.settings import BatchSettings
from wsi_saliency.urls import shown

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator, Sequence

    from wsi_saliency.engines.bars import Bars
    from wsi_saliency.engines.protocol import Engine
    from wsi_saliency.heatmap.shelf import Shelf
    from wsi_saliency.settings import RunSettings
    from wsi_saliency.workflows.jobs import Job, Outcome

log = logging.getLogger(__name__)

ISOLATED_FROM = 2  # slides, from which on each run in a process of its own
_LOOK_AGAIN = 1.0  # seconds


class FolderRun:
    """Explains the slides of a run, with an engine for those that are not there yet.

    Parameters
    ----------
    out, settings
        Where results go, and what is computed.
    engine
        What runs slides.
    overwrite
        Replace complete results; otherwise they are kept.
    fail_fast
        End at the first failure.
    retries
        How often a slide is tried again whose process or machine was lost.
    logs
        Write the traceback of each failure to a file beside the place of the result, and the table and the
        page of all slides; a table that is there is kept up to date in any case.
    """

    def __init__(
        self,
        out: Path | Shelf,
        settings: RunSettings,
        engine: Engine,
        *,
        overwrite: bool = False,
        fail_fast: bool = False,
        retries: int = 0,
        logs: bool = True,
    ) -> None:
        self._shelf, self._settings, self._engine = shelved(out), settings, engine
        self._overwrite, self._fail_fast, self._logs = overwrite, fail_fast, logs
        self._retries, self._losses = retries, Counter[Path]()
        self._results = KeptResults(self._shelf, settings)
        self._was_there = False

    def outcomes(self, jobs: Sequence[Job]) -> Iterator[Outcome]:
        """Yield what becomes of each slide: first what is kept, then the others as they are done.

        Raises
        ------
        ModelError, SettingsError, OutputError
            If the classifier cannot be had, or there cannot be an output folder; then no slide can be done.
            `NoRoomError` if nothing more can be written to it; the slides that are done stay.
        """
        self._shelf.check()
        summary = Summary(self._shelf) if self._logs or self._shelf.has(SUMMARY) else None
        no_room = False
        try:
            for found in self._all(jobs):
                no_room = found.no_room or self._has_gone()
                outcome = found if no_room else self._logged(found)
                if summary and not no_room:
                    summary.add(self._row(outcome))
                yield outcome
                if no_room and len(jobs) > 1:
                    raise NoRoomError(self._ended())
                if outcome.failure is not None and self._fail_fast:
                    return
        finally:
            if summary and not self._has_gone():
                summary.close(quiet=no_room)

    def _has_gone(self) -> bool:
        """Whether the output folder was there, and is no more: nobody makes it anew in another place."""
        there = self._shelf.is_there()
        self._was_there = self._was_there or there
        return self._was_there and not there

    def _ended(self) -> str:
        return (
            f"{self._shelf}: nothing more can be written there, so other slides are not tried; when it can, "
            "the same command does what is left"
        )

    def _row(self, outcome: Outcome) -> SlideRow:
        """Return what the table says of an outcome."""
        job, drawn = outcome.job, storable(shown(outcome.job.annotations or ""))
        if outcome.result is not None:
            return replace(SlideRow.of(job.shown, job.name, outcome.result), annotations=drawn)
        log_file = _log_name(job.name)
        return SlideRow(
            storable(job.shown),
            FAILED,
            storable(job.name.as_posix()),
            storable(outcome.failure or ""),
            when=_now(),
            error_log=storable(log_file.as_posix()) if self._shelf.has(log_file) else "",
            annotations=drawn,
        )

    def _all(self, jobs: Sequence[Job]) -> Iterator[Outcome]:
        left = []
        for job, kept in zip(
            jobs, repeat(None) if self._overwrite else self._results.outcomes(jobs), strict=False
        ):
            if kept:
                yield kept
            else:
                left.append(job)
        if not left:
            return
        with self._engine as engine:
            held: list[Job] = []
            while left or held:
                again, busy = yield from self._tried(engine, left)
                if busy:
                    _say_busy(busy)
                left, held = yield from self._when_free([*held, *(outcome.job for outcome in busy)], again)

    def _tried(
        self, engine: Engine, jobs: Sequence[Job]
    ) -> Generator[Outcome, None, tuple[list[Job], list[Outcome]]]:
        """Run slides; returns those that are to be tried again, and those that other runs work on."""
        again, busy = [], []
        for outcome in engine.run(jobs, self._settings):
            if outcome.busy:
                busy.append(outcome)
            elif outcome.lost and self._losses[outcome.job.name] < self._retries:
                self._losses[outcome.job.name] += 1
                log.warning("%s; it is tried again when the others are done", outcome.failure)
                again.append(outcome.job)
            else:
                yield outcome
        return again, busy

    def _kept(self, job: Job) -> Outcome | None:
        return None if self._overwrite else self._results.outcome(job)

    def _when_free(
        self, jobs: list[Job], left: list[Job]
    ) -> Generator[Outcome, None, tuple[list[Job], list[Job]]]:
        """Wait for other runs unless slides are left to do, and yield what they have made.

        Returns the slides that are left to do, those that others have left over among them, and those that
        they still hold.
        """
        while True:
            held = [job for job in jobs if self._shelf.is_busy(job.name)]
            if left or len(held) < len(jobs) or not jobs:
                break
            time.sleep(_LOOK_AGAIN)
        for job in jobs:
            if job not in held and (kept := self._kept(job)):
                yield kept
            elif job not in held:
                left.append(job)
        return left, held

    def _logged(self, outcome: Outcome) -> Outcome:
        """Write the traceback of a failure beside the place of the result; remove that of an earlier one."""
        log_file = _log_name(outcome.job.name)
        if outcome.failure is None:
            self._shelf.remove(log_file, unlikely=outcome.result is not None and outcome.result.kept)
            return outcome
        if not self._logs:
            return _with_hint(outcome, "run with -v for the traceback")
        text = f"{_now()}\n{outcome.failure}\n\n{outcome.trace or ''}"
        try:
            self._shelf.write(log_file, text)
        except (OSError, OutputError) as error:
            log.debug("%s: %s", log_file, error)
            return outcome
        return _with_hint(outcome, f"the traceback is in {self._shelf.where(log_file)}")


def explain_jobs(
    jobs: Sequence[Job],
    out: Path | Shelf,
    settings: RunSettings,
    batch: BatchSettings | None = None,
    *,
    overwrite: bool = False,
    progress: bool = False,
) -> Iterator[Outcome]:
    """Explain slides, and yield the outcome of each when it is there.

    A single slide is explained in this process, unless it is what ``--limit`` or ``--shard`` leave of many.
    Several are explained in worker processes, one for each device, or more. Slides whose complete results
    are kept come first, then the others: with one process in their order, with several as they are done;
    last those that were lost or that other runs were working on.

    Parameters
    ----------
    jobs, out, settings, batch
        The slides, where results go (a folder or a shelf), what is computed, and how the run deals with
        slides.
    overwrite
        Replace complete results; otherwise they are kept.
    progress
        Show bars with patches, slides and the time left, where there is a terminal.

    Raises
    ------
    ModelError, SettingsError, OutputError
        If the classifier cannot be had, or there cannot be an output folder; then no slide can be done.
    """
    batch = batch or BatchSettings()
    count = max(len(jobs), 2) if batch.takes_some else len(jobs)  # what is left of many counts as several
    apart = count >= ISOLATED_FROM or batch.slide_timeout is not None or batch.engine == "ray"
    if apart:
        shelved(out).check_shared()
    bars: Bars = TerminalBars(len(jobs)) if progress and apart else NoBars()
    if apart:
        make = partial(RayEngine, address=batch.address) if batch.engine == "ray" else LocalEngine
        engine: Engine = make(
            out, overwrite=overwrite, timeout=batch.slide_timeout, bars=bars, side_by_side=batch.jobs
        )
    else:
        engine = DirectEngine(out, overwrite, wait=count == 1, progress=progress)
    run = FolderRun(
        out,
        settings,
        engine,
        overwrite=overwrite,
        fail_fast=batch.fail_fast,
        retries=batch.times_again,
        logs=count > 1,
    )
    try:
        for outcome in run.outcomes(jobs):
            bars.slide_done()
            yield outcome
    finally:
        bars.close()


def _log_name(name: Path) -> Path:
    return name.with_name(f"{name.name}.error.log")


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _with_hint(outcome: Outcome, where: str) -> Outcome:
    """Say where the traceback is, if it is what explains the failure."""
    return replace(outcome, failure=f"{outcome.failure} ({where})") if outcome.unexpected else outcome


def _say_busy(busy: Sequence[Outcome]) -> None:
    log.warning(
        "other runs work on %d slide%s; waiting for their end (%s)",
        len(busy),
        "s" if len(busy) > 1 else "",
        busy[0].failure,
    )
